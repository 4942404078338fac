"""What a step logs of its batch, the same on every rank. What it logs of the trained tokens: `token_metrics.py`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from asyncrl.learn.update.mini_batches import token_lags
from asyncrl.ledger.zero_variance import rewards_differ
from asyncrl.types import Batch

Metrics = dict[str, float | list[float]]
"""A list is a histogram: counts for 0, 1, 2, …"""


def batch_metrics(batch: Batch, max_staleness: int) -> Metrics:
    """Rewards, lengths, staleness and, where there are any, environments of a batch.

    `length/*` are of whole completions, an environment's tokens among them. `staleness/*` cover every sampled token.
    `staleness/violations` are the tokens over the bound, which the guard masks; `staleness/violation_length_mean` is
    the mean length of the completions they sit in, to be held against `length/mean`: masking favours short answers when
    it is larger.
    """
    lengths = np.concatenate([group.lengths for group in batch.groups])
    rewards = np.concatenate([group.rewards for group in batch.groups]).astype(np.float64)
    correct = np.concatenate([group.correct for group in batch.groups])
    scored = ~np.isnan(rewards)
    metrics: Metrics = {
        "reward/mean": _mean(rewards[scored]),
        "reward/std": float(rewards[scored].std()) if scored.any() else 0.0,
        "reward/accuracy": _mean(correct[scored]),
        "reward/quarantined": float((~scored).sum()),
        "reward/zero_variance_fraction": _mean(np.array([not rewards_differ(group.rewards) for group in batch.groups])),
        "length/mean": _mean(lengths),
        "length/max": float(lengths.max()),
        "length/truncated_fraction": _mean(np.concatenate([group.truncated for group in batch.groups])),
    }
    metrics |= _term_metrics(batch) | _data_set_metrics(batch)
    sampled = np.concatenate([group.sampled for group in batch.groups])
    metrics |= _staleness_metrics(token_lags(batch), lengths, sampled, max_staleness)
    return metrics | _support_metrics(batch) | _environment_metrics(batch, sampled) | _engine_metrics(batch)


def _support_metrics(batch: Batch) -> Metrics:
    """Nothing where tokens are sampled from the whole vocabulary."""
    sizes = np.concatenate([group.support_sizes for group in batch.groups])
    return {"support/size_mean": _mean(sizes[sizes > 0])} if len(sizes) else {}


def _environment_metrics(batch: Batch, sampled: NDArray[np.bool_]) -> Metrics:
    """Nothing without an environment."""
    environment_s = sum(group.environment_s for group in batch.groups)
    if environment_s == 0:
        return {}
    turns = np.concatenate([group.num_turns for group in batch.groups])
    return {
        "environment/turns_mean": _mean(turns),
        "environment/turns_max": float(turns.max()),
        "environment/seconds_mean": environment_s / len(turns),
        "environment/tokens_mean": float((~sampled).sum()) / len(turns),
    }


def _term_metrics(batch: Batch) -> Metrics:
    """The mean score of each reward term, unweighted."""
    labels = sorted({label for group in batch.groups for label in group.term_scores})
    scores = {label: np.concatenate([group.term_scores.get(label, []) for group in batch.groups]) for label in labels}
    return {f"reward/term/{label}": _mean(values[~np.isnan(values)]) for label, values in scores.items()}


def _data_set_metrics(batch: Batch) -> Metrics:
    """Of each data set of a mixture; nothing without one."""
    metrics: Metrics = {}
    for name in sorted({group.data_set for group in batch.groups} - {""}):
        groups = [group for group in batch.groups if group.data_set == name]
        rewards = np.concatenate([group.rewards for group in groups]).astype(np.float64)
        scored = ~np.isnan(rewards)
        metrics |= {
            f"data/{name}/fraction": len(groups) / len(batch.groups),
            f"data/{name}/reward_mean": _mean(rewards[scored]),
            f"data/{name}/accuracy": _mean(np.concatenate([group.correct for group in groups])[scored]),
        }
    return metrics


def _engine_metrics(batch: Batch) -> Metrics:
    """Of each engine of a mixed fleet; nothing without one."""
    metrics: Metrics = {}
    for engine in batch.engines:
        groups = [group for group in batch.groups if group.engine == engine]
        lags = token_lags(replace(batch, groups=groups))
        metrics |= {
            f"engine/{engine}/fraction": len(groups) / len(batch.groups),
            f"engine/{engine}/staleness_mean": _mean(lags),
            f"engine/{engine}/staleness_max": float(lags.max()),
        }
    return metrics


def _staleness_metrics(
    lags: NDArray[np.int64], lengths: NDArray[np.int32], sampled: NDArray[np.bool_], max_staleness: int
) -> Metrics:
    """`lags` are of the sampled tokens, `lengths` and `sampled` as in `Group`, over the batch."""
    too_old = lags > max_staleness
    completions = np.repeat(np.arange(len(lengths)), lengths)[sampled]
    hit = np.unique(completions[too_old])
    return {
        "staleness/mean": _mean(lags),
        "staleness/max": float(lags.max()),
        "staleness/violations": float(too_old.sum()),
        "staleness/violation_completions": float(len(hit)),
        "staleness/violation_length_mean": _mean(lengths[hit]),
        "staleness/histogram": np.bincount(lags).astype(float).tolist(),
    }


def _mean(values: NDArray[np.generic]) -> float:
    """The mean; 0 of nothing."""
    return float(values.mean()) if len(values) else 0.0
