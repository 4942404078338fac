"""The resharding plan, pure: which slice of which tensor a worker keeps, and where it puts it.

    learner 0     whole tensor "q_proj" ─┐ source region            target region ┌─▶ worker 0 "qkv_proj"
                  whole tensor "k_proj" ─┴──────── Slice ─────────────────────────┴─▶ worker 1 "qkv_proj"

A plan is a list of slices, found from the model as it is loaded (`dry_run.py`), not from a table of names: fused,
column and row parallel, replicated and tied parameters are all the same here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate

import msgspec
import torch


class Region(msgspec.Struct, frozen=True):
    """A strided part of a contiguous tensor, in elements."""

    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @classmethod
    def of(cls, view: torch.Tensor) -> Region:
        return cls(int(view.storage_offset()), tuple(view.shape), tuple(view.stride()))

    @classmethod
    def whole(cls, shape: tuple[int, ...]) -> Region:
        return cls.of(torch.empty(shape, device="meta"))

    @property
    def num_elements(self) -> int:
        return torch.Size(self.shape).numel()

    def view(self, tensor: torch.Tensor) -> torch.Tensor:
        """This part of a contiguous tensor; shares its memory."""
        assert tensor.is_contiguous()
        return tensor.as_strided(self.shape, self.stride, tensor.storage_offset() + self.offset)


class Slice(msgspec.Struct, frozen=True):
    """`source` of the tensor `name` goes to `target` of the worker's `parameter`."""

    name: str
    source: Region
    parameter: str
    target: Region


class Piece(msgspec.Struct, frozen=True):
    """What travels as one run of elements: a part of the tensor `name`, in row-major order."""

    name: str
    region: Region
    dtype: str
    """torch's name of it, such as `bfloat16`."""

    @property
    def num_bytes(self) -> int:
        """In a bucket, where every piece begins at a multiple of 8 bytes."""
        return -(-self.region.num_elements * dtype_named(self.dtype).itemsize // 8) * 8


def whole_pieces(tensors: Mapping[str, torch.Tensor]) -> list[Piece]:
    """Every tensor, whole. Only names, shapes and dtypes are read: meta tensors will do."""
    return [Piece(name, Region.whole(tuple(t.shape)), dtype_name(t.dtype)) for name, t in tensors.items()]


def own_pieces(slices: Iterable[Slice], tensors: Mapping[str, torch.Tensor]) -> list[Piece]:
    """Just what these slices need, each part once, in their order."""
    dtypes = {name: dtype_name(tensor.dtype) for name, tensor in tensors.items()}
    return list(dict.fromkeys(Piece(one.name, one.source, dtypes[one.name]) for one in slices))


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def dtype_named(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def total_bytes(pieces: Iterable[Piece]) -> int:
    return sum(piece.num_bytes for piece in pieces)


def buckets(pieces: Iterable[Piece], bucket_bytes: int) -> Iterator[list[Piece]]:
    """Consecutive pieces, closed as soon as they reach `bucket_bytes`. Both sides cut the stream with this."""
    bucket: list[Piece] = []
    size_bytes = 0
    for piece in pieces:
        bucket.append(piece)
        size_bytes += piece.num_bytes
        if size_bytes >= bucket_bytes:
            yield bucket
            bucket, size_bytes = [], 0
    if bucket:
        yield bucket


def pack(bucket: list[Piece], tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The bucket's bytes, uint8 [total_bytes(bucket)]; what fills pieces up is zero."""
    return pack_parts(bucket, [piece.region.view(tensors[piece.name]) for piece in bucket])


def pack_parts(bucket: list[Piece], parts: list[torch.Tensor]) -> torch.Tensor:
    """As `pack`, of each piece's elements."""
    buffer = torch.empty(total_bytes(bucket), dtype=torch.uint8)
    for end in accumulate(piece.num_bytes for piece in bucket):
        buffer[end - 8 : end] = 0
    for (_, place), part in zip(unpack(bucket, buffer), parts, strict=True):
        place.copy_(part)
    return buffer


def unpack(bucket: list[Piece], buffer: torch.Tensor) -> Iterator[tuple[Piece, torch.Tensor]]:
    """Each piece with its elements in a packed bucket, in the shape of its region; shares the buffer's memory."""
    offset = 0
    for piece in bucket:
        part = buffer[offset : offset + piece.num_bytes].view(dtype_named(piece.dtype))
        yield piece, part[: piece.region.num_elements].view(piece.region.shape)
        offset += piece.num_bytes
