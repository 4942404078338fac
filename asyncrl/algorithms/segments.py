"""Sums over segments (groups of completions, sequences of tokens). Legend: T values, S segments, ids 0 … S − 1."""

from __future__ import annotations

from torch import Tensor


def num_segments(ids: Tensor) -> int:
    """S, where the last segment is not empty; 0 without a value."""
    return int(ids.max()) + 1 if len(ids) else 0


def segment_sum(values: Tensor, ids: Tensor, size: int) -> Tensor:
    """[S] sums of `values` [T] by `ids` [T] int64; differentiable. `size` is S."""
    return values.new_zeros(size).index_add(0, ids, values)


def segment_reduce(values: Tensor, ids: Tensor, size: int, reduce: str) -> Tensor:
    """[S] `amin` or `amax` of `values` [T] by `ids` [T] int64; 0 for an empty segment. `size` is S."""
    return values.new_zeros(size).scatter_reduce(0, ids, values, reduce, include_self=False)


def masked_segment_sum(values: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
    """[T]: each value replaced by the sum over its segment where `mask` [T] is True; differentiable."""
    return segment_sum(values.where(mask, 0.0), ids, num_segments(ids))[ids]


def masked_segment_mean(values: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
    """[T]: each value replaced by the mean over its segment where `mask` [T] is True (0 where it nowhere is)."""
    counts = masked_segment_sum(values.new_ones(len(values)), mask, ids)
    return masked_segment_sum(values, mask, ids) / counts.clamp(min=1)
