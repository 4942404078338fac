"""Tokens and sequences that are not trained because π_θ has moved too far from μ. Legend: T tokens of whole sequences.

Rejection only drops; it may be had together with a correction, which weighs what is left.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from asyncrl.algorithms import kl
from asyncrl.algorithms.segments import masked_segment_mean, num_segments, segment_reduce
from asyncrl.config.algorithm import AlgorithmConfig

_ESTIMATORS = {"k1": kl.k1, "k2": kl.k2, "k3": kl.k3}


def rejected(
    log_ratio: Tensor,
    advantages: Tensor,
    mask: Tensor,
    segment_ids: Tensor,
    algorithm: AlgorithmConfig,
    largest_square: float = math.inf,
) -> Tensor:
    """[T] bool: by `algorithm.rejection` and `algorithm.correction_veto`.

    Divergences are estimates of KL(μ ‖ π_θ) by tokens from μ: k1 = −log ρ, k2 = ½(log ρ)², k3 = ρ − 1 − log ρ.

        token_k2, token_k3                   the token's own is above the bound
        sequence_mean_k2, sequence_mean_k3   the mean over its sequence is
        sequence_max_k2, sequence_max_k3     that of any token of its sequence is
        negative_sequence_k1                 A < 0 and the mean k1 of its sequence is above the bound: an answer to be
                                             unlearned that π_θ would hardly give any more (DeepSeek-V3.2, arXiv
                                             2512.02556, off-policy sequence masking)
        second_moment                        (log ρ)² is above `largest_square`, by `largest_kept_square`

    Args:
        log_ratio: [T] log ρ, clamped; whole sequences.
        advantages: [T], equal within a sequence.
        mask: [T] bool, the trained tokens: the others do not count in means and maxima.
        segment_ids: [T] int64, the sequence of each token.
        largest_square: of the whole mini-batch; only for second_moment.
    """
    log_ratio = log_ratio.detach()
    result = torch.zeros_like(mask)
    if algorithm.rejection == "second_moment":
        result = log_ratio.square() > largest_square
    elif algorithm.rejection != "none":
        assert algorithm.rejection_bound is not None
        level, _, estimator = algorithm.rejection.rpartition("_")
        divergence = _ESTIMATORS[estimator](torch.zeros_like(log_ratio), log_ratio)
        if level == "sequence_max":
            divergence = _largest(divergence, mask, segment_ids)
        elif level != "token":
            divergence = masked_segment_mean(divergence, mask, segment_ids)
        result = divergence > algorithm.rejection_bound
        if level == "negative_sequence":
            result = result & (advantages < 0)
    if algorithm.correction_veto > 0:
        result = result | (_largest(-log_ratio, mask, segment_ids) > -math.log(algorithm.correction_veto))
    return result


def largest_kept_square(squares: Tensor, bound: float) -> float:
    """The largest (log ρ)² that is kept, so that the mean over the kept is at most `bound`; −1 keeps none.

    Largest first, as many are dropped as it takes (M2PO, arXiv 2510.01161). Equal ones are kept or dropped together.
    As in AReaL every trained token may be dropped, whatever its advantage.

    Args:
        squares: [T] of all trained tokens of a mini-batch, over all ranks.
        bound: > 0.
    """
    values, counts = squares.double().unique(return_counts=True)
    means = (values * counts).cumsum(0) / counts.cumsum(0)
    num_kept = int((means <= bound).sum())  # the means of ascending values only rise
    return values[num_kept - 1].item() if num_kept else -1.0


def _largest(values: Tensor, mask: Tensor, segment_ids: Tensor) -> Tensor:
    """[T]: each value replaced by the largest of its sequence where `mask` is True (−∞ where it nowhere is)."""
    largest = segment_reduce(values.where(mask, -torch.inf), segment_ids, num_segments(segment_ids), "amax")
    return largest[segment_ids]
