"""Damages what a publish sends, on its way: the proof that nobody would serve it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from asyncrl.publish.groups.base import Transfer
from asyncrl.publish.groups.gloo import GlooGroup
from asyncrl.publish.groups.nccl import NcclGroup


@contextmanager
def damaged_buckets(num_damaged: int) -> Iterator[None]:
    """The first buckets that this process broadcasts in the block leave with one bit changed.

    Their checksums, and what a second try sends, are of the true bytes.
    """
    left = [num_damaged]
    kept: list[torch.Tensor] = []
    with _wrapped(GlooGroup, left, kept), _wrapped(NcclGroup, left, kept):
        yield


@contextmanager
def _wrapped(kind: type[GlooGroup] | type[NcclGroup], left: list[int], kept: list[torch.Tensor]) -> Iterator[None]:
    """
    Args:
        left: how many more are damaged.
        kept: damaged copies, which must live as long as they travel.
    """
    broadcast = kind.broadcast

    def damaging(self: GlooGroup | NcclGroup, tensor: torch.Tensor) -> Transfer:
        if left[0] and tensor.dtype == torch.uint8 and tensor.numel():
            left[0] -= 1
            tensor = tensor.clone()
            tensor[tensor.numel() // 2] ^= 1
            kept.append(tensor)
        return broadcast(self, tensor)  # type: ignore[arg-type]

    kind.broadcast = damaging  # type: ignore[method-assign]
    try:
        yield
    finally:
        kind.broadcast = broadcast  # type: ignore[method-assign]
