"""A worker's end of a publish group, whatever engine it is part of and whatever carries the bytes.

    stage       a thread receives bucket after bucket and hands each piece to an `Assembly`, while the model runs
    take_over   between two decode steps: the model takes over what was put together, and shows that it holds it

Consumes   buckets from learner rank 0, then their checksums.
Produces   −1 to rank 0 when all have come as they were sent, else the number of the first that has not.
Waits for  the other members at the rendezvous, then each bucket, at most publish.timeout_s.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import torch

from asyncrl.config.checks.publish import PublishTransport
from asyncrl.errors import PublishError
from asyncrl.publish.adapter import is_adapter
from asyncrl.publish.assembly import Assembly
from asyncrl.publish.checksum import checksum
from asyncrl.publish.delta import decode
from asyncrl.publish.groups.base import Group, Transfer, device_of
from asyncrl.publish.groups.rendezvous import Rendezvous
from asyncrl.publish.merging import Merging, changing_slices, empty_base
from asyncrl.publish.plan import (
    Piece,
    Slice,
    buckets,
    cut,
    dtype_named,
    own_pieces,
    total_bytes,
    two_buffers,
    unpack,
    whole_pieces,
)
from asyncrl.publish.streams import own_stream

log = logging.getLogger(__name__)

ALL_ARRIVED = -1
WHOLE = -1
"""Instead of the length of a delta: the bucket itself comes."""
KEPT = -2
"""Nothing comes: the worker has kept the base weights in this bucket."""


@dataclass
class JoinInfo:
    """What a worker needs to join."""

    store_file: str
    rank_offset: int
    """Publish rank of the generator's first worker."""
    num_workers: int
    """Of all generators together."""
    transport: PublishTransport
    sliced: bool
    """Each worker receives its own slices alone; else all receive everything."""
    delta: bool
    """Keep what came last: the next may come as changes of it."""
    bucket_bytes: int
    """No bucket is much longer, but where a row is, or where all receive everything."""
    timeout_s: float
    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]

    def metas(self) -> dict[str, torch.Tensor]:
        """Name → meta tensor of what is sent."""
        dtypes = map(dtype_named, self.dtype_names)
        return {
            name: torch.empty(shape, dtype=dtype, device="meta")
            for name, dtype, shape in zip(self.names, dtypes, self.shapes, strict=True)
        }

    def weights(self) -> dict[str, torch.Tensor]:
        """`metas` of the model's own parameters, without an adapter's."""
        return {name: meta for name, meta in self.metas().items() if not is_adapter(name)}


class Receiver:
    """One worker of one generator; the engine's own class adds `_new_assembly`."""

    _group: Future[Group] | None = None

    def begin(self, info: JoinInfo, slices: list[Slice], part: int, num_parts: int) -> None:
        """Returns at once; a thread waits for the other members, so a late one does not stop this worker's decoding.

        Args:
            slices: what this worker keeps.
            part: which of its generator's workers it is.
            num_parts: how many those are.
        """
        tensors, weights = info.metas(), info.weights()
        self._slices = cut(slices, weights, info.bucket_bytes) if info.sliced else slices
        self._part, self._num_parts = part, num_parts
        self._pieces = own_pieces(self._slices, weights) if info.sliced else whole_pieces(weights)
        self._buckets = stream_buckets(self._pieces, tensors, info.bucket_bytes)
        self._device = device_of(info.transport)
        self._memory = two_buffers(self._buckets, self._device)
        self._changing = changing_slices(self._slices, tensors)
        self._base = empty_base(self._changing, weights)
        self._num_adapter_pieces = len(tensors) - len(weights)
        # A thread for each group: that of a broken one may hang until its deadline.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="publish")
        self._group = self._thread.submit(self._join, info)
        self._staged: Future[Assembly] | None = None
        self._keeps_last = info.delta
        self._last: Assembly | None = None

    def stage(self, at_once: bool = False) -> None:
        """Returns at once; the weights come in the thread.

        Args:
            at_once: the model stands still, so the weights may take their places as they come.
        """
        self._staged = self._thread.submit(self._receive, at_once)

    def take_over(self, staged: bool) -> None:
        """Switches to the staged weights.

        Args:
            staged: they have come already; else they come now, while the model stands still.

        Raises:
            PublishError: they did not come whole, or the model does not hold them now.
        """
        if not staged:
            self.stage(at_once=True)
        assert self._staged is not None
        assembly, self._staged = self._staged.result(), None
        assembly.switch()
        assembly.verify()
        self._last = assembly if self._keeps_last else None

    def leave(self) -> None:
        """Frees the thread from a broken group, if the transport can."""
        if self._group is not None:
            self._group.add_done_callback(_abort)
        self._group = self._staged = self._last = None

    def _new_assembly(self, slices: list[Slice], at_once: bool) -> Assembly:
        """Of what these slices put in place."""
        raise NotImplementedError

    def _assembly_of(self, lengths: list[int], at_once: bool) -> Assembly:
        assembly = self._new_assembly(self._changing if KEPT in lengths else self._slices, at_once)
        return Merging(assembly, self._base, self._num_adapter_pieces) if self._num_adapter_pieces else assembly

    def _join(self, info: JoinInfo) -> Group:
        worker = info.rank_offset + self._part
        rendezvous = Rendezvous(info.store_file, info.timeout_s)
        rendezvous.announce(worker, self._slices)
        if not info.sliced:
            name, rank, num_workers = group_name(0), worker, info.num_workers
        else:
            generator = (info.rank_offset - 1) // self._num_parts
            name, rank, num_workers = group_name(self._part), 1 + generator, info.num_workers // self._num_parts
        return rendezvous.group(info.transport, self._device, name, rank, 1 + num_workers)

    def _receive(self, at_once: bool) -> Assembly:
        """In the thread: how long each bucket is, all buckets, then their checksums; reports to rank 0."""
        assert self._group is not None
        group = self._group.result()
        try:
            with own_stream(self._device):
                told = torch.empty(len(self._buckets), dtype=torch.int64, device=self._device)
                group.broadcast(told).wait()
                lengths = told.tolist()
                return self._receive_from(group, lengths, self._assembly_of(lengths, at_once))
        except Exception:
            log.exception("a version was not received")  # the switch, which would raise it, may never come
            raise

    def _receive_from(self, group: Group, lengths: list[int], assembly: Assembly) -> Assembly:
        due = [k for k, length in enumerate(lengths) if length != KEPT]
        received: list[int] = []
        for bucket, buffer in self._receive_buckets(group, assembly, lengths, due):
            received.append(checksum(buffer))
            for piece, part in unpack(bucket, buffer):
                assembly.put(piece, part)
        sent = torch.empty(len(received), dtype=torch.int64, device=self._device)
        group.broadcast(sent).wait()
        wrong = [k for k, mine, theirs in zip(due, received, sent.tolist(), strict=True) if mine != theirs]
        group.report(wrong[0] if wrong else ALL_ARRIVED)
        if wrong:
            raise PublishError(
                f"buckets {wrong} of {len(self._buckets)} arrived with another checksum than they were sent"
            )
        return assembly

    def _receive_buckets(
        self, group: Group, assembly: Assembly, lengths: list[int], due: list[int]
    ) -> Iterator[tuple[list[Piece], torch.Tensor]]:
        """Each bucket that is due, with its bytes. While one is put in its places, the next one comes."""
        coming: deque[tuple[torch.Tensor, Transfer]] = deque()
        for k, after in pairwise([None, *due, None]):
            if after is not None:
                buffer = self._buffer(assembly, self._buckets[after], lengths[after])
                coming.append((buffer, group.broadcast(buffer)))
            if k is not None:
                bucket = self._buckets[k]
                buffer, work = coming.popleft()
                work.wait()
                yield bucket, buffer if lengths[k] == WHOLE else self._changed(bucket, buffer)

    def _buffer(self, assembly: Assembly, bucket: list[Piece], length: int) -> torch.Tensor:
        """Where a bucket comes: if it can, where it is to stay."""
        if length != WHOLE:
            return torch.empty(length, dtype=torch.uint8, device=self._device)
        place = assembly.place(bucket)
        return next(self._memory)[: total_bytes(bucket)] if place is None else place

    def _changed(self, bucket: list[Piece], buffer: torch.Tensor) -> torch.Tensor:
        """The bucket's bytes, of their changes. Damaged ones leave the old bytes, whose checksum is another."""
        assert self._last is not None, "changes of weights that this worker does not have"
        whole = self._last.pack(bucket, next(self._memory))
        try:
            decode(buffer, whole)
        except ValueError:
            log.exception("a bucket could not be decoded")
        return whole


def stream_buckets(pieces: list[Piece], tensors: Mapping[str, torch.Tensor], bucket_bytes: int) -> list[list[Piece]]:
    """What travels to one worker: its pieces of the weights, then the whole adapter where there is one."""
    adapter = {name: tensor for name, tensor in tensors.items() if is_adapter(name)}
    return [*buckets(pieces, bucket_bytes), *buckets(whole_pieces(adapter), bucket_bytes)]


def whole_slices(tensors: Mapping[str, torch.Tensor]) -> list[Slice]:
    """Of a worker that keeps each tensor whole, under its own name. Meta tensors will do."""
    return [Slice(piece.name, piece.region, piece.name, piece.region) for piece in whole_pieces(tensors)]


def _abort(group: Future[Group]) -> None:
    if group.exception() is None:
        group.result().abort()


def group_name(part: int) -> str:
    """Of the group whose workers all receive the same."""
    return f"part-{part}"
