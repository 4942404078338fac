"""Importance corrections: how far a token's importance weight may go. Legend: T tokens of whole sequences.

`log_ratio` is log ρ, where ρ compares the policy that the loss is about with μ, the engine's policy that sampled the
token: π_θ/μ, or π_prox/μ for decoupled_ppo. Every correction acts on a token's importance weight

    weight = base · scale        base: ρ, or ∏ρ over its sequence, or (∏ρ)^(1/n)        scale: what the bounds do to it

    truncate   scale = clamp(base, lower, upper) / base
    mask       scale = 1 where lower ≤ base ≤ upper, else 0

A loss without a ratio of its own to μ (reinforce, decoupled_ppo) is multiplied by `weights`; one whose surrogate
already carries ρ (ppo_clip, gspo, cispo, dppo_tv) by `scale` alone. Neither has a gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from asyncrl.algorithms.ratio import MAX_LOG_RATIO
from asyncrl.algorithms.segments import masked_segment_mean, masked_segment_sum, num_segments, segment_reduce
from asyncrl.config.algorithm import AlgorithmConfig


@dataclass(frozen=True)
class Correction:
    """What `correct` decides for each of T tokens."""

    weights: Tensor
    """[T] ≥ 0: the importance weight, corrected."""
    scale: Tensor
    """[T] ≥ 0: by how much the correction changed it."""

    @property
    def masked(self) -> Tensor:
        """[T] bool: outside the band, or vetoed."""
        return self.scale == 0

    @property
    def truncated(self) -> Tensor:
        """[T] bool: cut to a bound."""
        return (self.scale != 1) & ~self.masked


def correct(
    log_ratio: Tensor, mask: Tensor, segment_ids: Tensor, lags: Tensor, algorithm: AlgorithmConfig
) -> Correction:
    """The correction of `algorithm.correction`, with lag-dependent bounds and the veto.

    token_truncate is truncated importance sampling (IMPALA, arXiv 1802.01561, section 4.1), token_mask with two bounds
    IcePop (arXiv 2510.18855). geometric_mask keeps or drops whole sequences by the geometric mean and leaves each token
    its own ratio as the weight, as in NeMo-RL: the mean is no importance weight, only a test.

    Args:
        log_ratio: [T] log ρ, clamped; whole sequences.
        mask: [T] bool, the trained tokens: the others do not count in products and means.
        segment_ids: [T] int64, the sequence of each token.
        lags: [T] int64 ≥ 0.
        algorithm: the bounds.
    """
    log_ratio = log_ratio.detach()
    base = log_ratio.exp()
    scale = torch.ones_like(base)
    level, _, rule = algorithm.correction.partition("_")
    if level != "none":
        ratio = _ratio_of_level(log_ratio, mask, segment_ids, level)
        lower, upper = bounds(lags, algorithm)
        if rule == "truncate":
            scale = ratio.clamp(lower, upper) / ratio
        else:
            scale = ((ratio >= lower) & (ratio <= upper)).to(ratio.dtype)
        base = base if (level, rule) == ("geometric", "mask") else ratio
    weights = scale if level == "none" else base * scale
    if algorithm.correction_veto > 0:
        kept = ~vetoed(log_ratio, mask, segment_ids, algorithm.correction_veto)
        weights, scale = weights * kept, scale * kept
    return Correction(weights, scale)


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


def vetoed(log_ratio: Tensor, mask: Tensor, segment_ids: Tensor, veto: float) -> Tensor:
    """[T] bool: the sequence has a trained token with ρ < veto, a token that μ took and this policy would not."""
    lowest = segment_reduce(log_ratio.where(mask, torch.inf), segment_ids, num_segments(segment_ids), "amin")
    return lowest.exp()[segment_ids] < veto


def _ratio_of_level(log_ratio: Tensor, mask: Tensor, segment_ids: Tensor, level: str) -> Tensor:
    if level == "token":
        return log_ratio.exp()
    over_sequence = masked_segment_sum if level == "sequence" else masked_segment_mean
    return over_sequence(log_ratio, mask, segment_ids).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
