"""Importance corrections: how far a token's importance weight may go. Legend: T tokens of whole sequences.

`log_ratio` is log ρ, where ρ compares the policy that the loss is about with μ, the engine's policy that sampled the
token: π_θ/μ, or π_prox/μ for decoupled_ppo. A correction decides the weight of A·∇log π_θ of each token:

    truncate   clamp(base, lower, upper)                  base: ρ, or ∏ρ over its sequence, or (∏ρ)^(1/n)
    mask       its weight if lower ≤ base ≤ upper, else 0

A loss may carry a ratio to μ itself (ppo_clip, dppo_tv and cispo the token's, gspo its sequence's), or none (reinforce,
decoupled_ppo). It is multiplied by `scale` = weight ÷ carried ratio, so that a truncated weight is the same whatever
the loss: no ratio counts twice, and the bounds hold for what a token weighs in the end. A masked loss keeps the ratio
that it carries, or is given the base. Nothing here has a gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from asyncrl.algorithms.ratio import MAX_LOG_RATIO, truncated_ratio
from asyncrl.algorithms.segments import masked_segment_mean, masked_segment_sum, num_segments, segment_reduce
from asyncrl.config.algorithm import AlgorithmConfig


@dataclass(frozen=True)
class Correction:
    """What `correct` decides for each of T tokens."""

    weights: Tensor
    """[T] ≥ 0: the importance weight in the end, of a token that the loss's own clip lets through."""
    scale: Tensor
    """[T] ≥ 0: what the loss is multiplied by."""
    masked: Tensor
    """[T] bool: outside the band, or rejected."""
    truncated: Tensor
    """[T] bool: cut to a bound."""


def correct(
    log_ratio: Tensor,
    carried: Tensor | None,
    rejected: Tensor,
    mask: Tensor,
    segment_ids: Tensor,
    lags: Tensor,
    algorithm: AlgorithmConfig,
) -> Correction:
    """The correction of `algorithm.correction`, with lag-dependent bounds.

    token_truncate is truncated importance sampling (IMPALA, arXiv 1802.01561, section 4.1), token_mask with two bounds
    IcePop (arXiv 2510.18855). geometric_mask keeps or drops whole sequences by the geometric mean and leaves each token
    its own ratio as the weight, as in NeMo-RL: the mean is no importance weight, only a test.

    Args:
        log_ratio: [T] log ρ, clamped; whole sequences.
        carried: [T] > 0, the ratio to μ that the loss carries itself; None if it carries none.
        rejected: [T] bool, tokens that weigh nothing in any case.
        mask: [T] bool, the trained tokens: the others do not count in products, means and a sequence's lag.
        segment_ids: [T] int64, the sequence of each token.
        lags: [T] int64 ≥ 0.
        algorithm: the bounds.
    """
    log_ratio = log_ratio.detach()
    level, _, rule = algorithm.correction.partition("_")
    if level == "none":
        weights = torch.ones_like(log_ratio) if carried is None else carried
        outside = torch.zeros_like(mask)
    else:
        base = _ratio_of_level(log_ratio, mask, segment_ids, level)
        lower, upper = bounds(_lags_of_level(lags, mask, segment_ids, level), algorithm)
        outside = (base < lower) | (base > upper)
        if rule == "truncate":
            weights = base.clamp(lower, upper)
        elif carried is not None:
            weights = carried
        else:
            weights = truncated_ratio(log_ratio) if level == "geometric" else base
    dropped = rejected | outside if rule == "mask" else rejected
    weights = weights * ~dropped
    scale = weights if carried is None else weights / carried
    return Correction(weights, scale, dropped, outside & ~dropped)


def bounds(lags: Tensor, algorithm: AlgorithmConfig) -> tuple[Tensor, Tensor]:
    """Staleness-aware bounds: upper(d) = 1 + (upper − 1)·γ^d and lower(d) = 1 − (1 − lower)·γ^d at lag d.

    The older the policy that sampled a token, the less its ratio is trusted. A lower bound of 0 means none, at every
    lag: raised, it would enlarge the weights of old tokens.

    Returns:
        lower [T], upper [T], float32.
    """
    decay = algorithm.correction_lag_decay ** lags.float()
    upper = 1 + (algorithm.correction_upper - 1) * decay
    lower = 1 - (1 - algorithm.correction_lower) * decay if algorithm.correction_lower > 0 else torch.zeros_like(decay)
    return lower, upper


def _ratio_of_level(log_ratio: Tensor, mask: Tensor, segment_ids: Tensor, level: str) -> Tensor:
    if level == "token":
        return log_ratio.exp()
    over_sequence = masked_segment_sum if level == "sequence" else masked_segment_mean
    return over_sequence(log_ratio, mask, segment_ids).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def _lags_of_level(lags: Tensor, mask: Tensor, segment_ids: Tensor, level: str) -> Tensor:
    """[T]: a sequence is judged as one, by the lag of its oldest trained token, which has the tightest bounds."""
    if level == "token":
        return lags
    return segment_reduce(lags.where(mask, 0), segment_ids, num_segments(segment_ids), "amax")[segment_ids]
