"""The resharding plan, pure: which slice of which tensor a worker keeps, and where it puts it.

    learner 0     whole tensor "q_proj" ─┐ source region            target region ┌─▶ worker 0 "qkv_proj"
                  whole tensor "k_proj" ─┴──────── Slice ─────────────────────────┴─▶ worker 1 "qkv_proj"

A plan is a list of slices, found from the model as it is loaded (`vllm/slice_discovery.py`), not from a table of names:
fused, column and row parallel, replicated and tied parameters are all the same here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate, cycle

import msgspec
import torch

LARGE_BYTES = 1 << 20
"""From this size on a piece travels by itself: a broadcast of it costs little more than its share of a larger one."""


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

    def rows(self, first: int, end: int) -> Region:
        """From row `first` up to `end`."""
        return Region(self.offset + first * self.stride[0], (end - first, *self.shape[1:]), self.stride)


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


def slices_of_pieces(slices: Iterable[Slice], pieces: Iterable[Piece]) -> defaultdict[Piece, list[Slice]]:
    """What is kept of each piece, whether the piece is just that slice or its whole tensor."""
    exact, whole = {}, {}
    for piece in pieces:
        exact[piece.name, piece.region] = whole[piece.name] = piece
    found: defaultdict[Piece, list[Slice]] = defaultdict(list)
    for one in slices:
        found[exact.get((one.name, one.source), whole[one.name])].append(one)
    return found


def cut(slices: Iterable[Slice], tensors: Mapping[str, torch.Tensor], max_bytes: int) -> list[Slice]:
    """The same copies, in slices of at most `max_bytes`: larger ones are cut between rows. A row is never cut."""
    parts: list[Slice] = []
    for one in slices:
        num_rows = one.source.shape[0] if one.source.shape else 1
        row_bytes = one.source.num_elements // num_rows * tensors[one.name].element_size()
        step = max(1, max_bytes // row_bytes)
        if step >= num_rows:
            parts.append(one)
            continue
        for first in range(0, num_rows, step):
            end = min(first + step, num_rows)
            parts.append(Slice(one.name, one.source.rows(first, end), one.parameter, one.target.rows(first, end)))
    return parts


def joined(slices: Iterable[Slice]) -> list[Slice]:
    """The same copies in fewer slices: those that follow each other at even distances on both sides, as the experts of
    a layer do, become the rows of one."""
    runs: list[list[Slice]] = []
    for one in slices:
        if runs and _goes_on(runs[-1], one):
            runs[-1].append(one)
        else:
            runs.append([one])
    return [_as_rows(run) if len(run) > 1 else run[0] for run in runs]


def _goes_on(run: list[Slice], one: Slice) -> bool:
    last = run[-1]
    if (last.name, last.parameter) != (one.name, one.parameter):
        return False
    sides = [(last.source, one.source), (last.target, one.target)]
    if any((old.shape, old.stride) != (new.shape, new.stride) for old, new in sides):
        return False
    steps = _steps(last, one)
    return min(steps) > 0 and (len(run) == 1 or _steps(run[0], run[1]) == steps)


def _steps(first: Slice, second: Slice) -> tuple[int, int]:
    return second.source.offset - first.source.offset, second.target.offset - first.target.offset


def _as_rows(run: list[Slice]) -> Slice:
    first, steps = run[0], _steps(run[0], run[1])
    source, target = (
        Region(side.offset, (len(run), *side.shape), (step, *side.stride))
        for side, step in zip((first.source, first.target), steps, strict=True)
    )
    return Slice(first.name, source, first.parameter, target)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def dtype_named(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def total_bytes(pieces: Iterable[Piece]) -> int:
    return sum(piece.num_bytes for piece in pieces)


def buckets(pieces: Iterable[Piece], bucket_bytes: int) -> list[list[Piece]]:
    """Small pieces together, a bucket closed as soon as it reaches `bucket_bytes`; then each large piece by itself.

    A large piece need not be copied into a bucket. The small ones come first, so that a layer whose bias is small is
    complete when its matrix comes. Both sides cut the stream with this.
    """
    large_bytes = min(LARGE_BYTES, bucket_bytes)
    alone, filled, bucket = [], [], list[Piece]()
    size_bytes = 0
    for piece in pieces:
        if piece.num_bytes >= large_bytes:
            alone.append([piece])
            continue
        bucket.append(piece)
        size_bytes += piece.num_bytes
        if size_bytes >= bucket_bytes:
            filled.append(bucket)
            bucket, size_bytes = [], 0
    return [*filled, *([bucket] if bucket else []), *alone]


def place_alone(bucket: list[Piece], part: torch.Tensor, device: torch.device) -> torch.Tensor | None:
    """The bytes of a large piece's elements where they lie, as its bucket; None where they have to be packed.

    Args:
        part: in the shape of the piece's region.
        device: where a bucket has to lie to travel.
    """
    piece = bucket[0]
    if (
        len(bucket) > 1
        or part.device != device
        or part.dtype != dtype_named(piece.dtype)
        or part.nbytes != piece.num_bytes
    ):
        return None
    if not part.is_contiguous():
        return None
    return part.view(-1).view(torch.uint8)


def pack(bucket: list[Piece], parts: list[torch.Tensor], memory: torch.Tensor) -> torch.Tensor:
    """The bucket's bytes, uint8 [total_bytes(bucket)], at the beginning of `memory`; what fills pieces up is zero.

    Args:
        parts: each piece's elements, in the shape of its region, on any device.
        memory: uint8, of that length at least.
    """
    buffer = memory[: total_bytes(bucket)]
    for end in accumulate(piece.num_bytes for piece in bucket):
        buffer[end - 8 : end] = 0
    for (_, place), part in zip(unpack(bucket, buffer), parts, strict=True):
        place.copy_(part, non_blocking=place.device.type != "cpu")  # else it could be read before it has come
    return buffer


def two_buffers(filled: list[list[Piece]], device: torch.device) -> Iterator[torch.Tensor]:
    """Memory for any of these buckets, one and the other in turn: one travels while the other is packed or emptied.

    Kept from publish to publish, as the kernel takes longer to hand out fresh pages than they take to be filled.
    """
    num_bytes = max(map(total_bytes, filled), default=0)
    return cycle([torch.empty(num_bytes, dtype=torch.uint8, device=device) for _ in range(2)])


def unpack(bucket: list[Piece], buffer: torch.Tensor) -> Iterator[tuple[Piece, torch.Tensor]]:
    """Each piece with its elements in a packed bucket, in the shape of its region; shares the buffer's memory."""
    offset = 0
    for piece in bucket:
        part = buffer[offset : offset + piece.num_bytes].view(dtype_named(piece.dtype))
        yield piece, part[: piece.region.num_elements].view(piece.region.shape)
        offset += piece.num_bytes
