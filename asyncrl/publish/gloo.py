"""The gloo weight-transfer engine, the worker's side, behind vLLM's own interface.

    stage    a thread receives bucket after bucket and puts the weights together (`staging.py`) while the model runs
    update   between two decode steps: the model takes them over and shows that it holds them

Importing this module registers the engine with vLLM under the name `gloo`. vLLM's workers import it through
`worker_extension_cls` (see `WorkerExtension`). The learner's side is `gloo_sender.py`.

Consumes   buckets from learner rank 0, then their checksums.
Produces   −1 to rank 0 when all have come as they were sent, else the number of the first that has not.
Waits for  the other members at the rendezvous, then each bucket, at most publish.timeout_s.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.distributed_c10d import Work
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

from asyncrl.errors import PublishError
from asyncrl.publish.checksum import checksum
from asyncrl.publish.delta import decode
from asyncrl.publish.dry_run import abandon_reload, find_slices
from asyncrl.publish.group import GlooGroup, Rendezvous
from asyncrl.publish.plan import Piece, buckets, dtype_named, own_pieces, total_bytes, two_buffers, unpack, whole_pieces
from asyncrl.publish.staging import Spare, Staging, has_experts

log = logging.getLogger(__name__)

ALL_ARRIVED = -1
WHOLE = -1
"""Instead of the length of a delta: the bucket itself comes."""


@dataclass
class GlooInitInfo(WeightTransferInitInfo):
    """What a worker needs to join."""

    master_address: str
    master_port: int
    rank_offset: int
    """Publish rank of the generator's first worker."""
    num_workers: int
    """Of all generators together."""
    sliced: bool
    """Each worker receives its own slices alone; else all receive everything."""
    delta: bool
    """Keep what came last: the next may come as changes of it."""
    bucket_bytes: int
    timeout_s: float
    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]


@dataclass
class GlooUpdateInfo(WeightTransferUpdateInfo):
    """How the weights of this update come."""

    staged: bool
    """They have come already; else they come now, while the model stands still."""


class GlooWeightTransferEngine(WeightTransferEngine[GlooInitInfo, GlooUpdateInfo]):
    """One worker of one generator."""

    init_info_cls = GlooInitInfo
    update_info_cls = GlooUpdateInfo

    def init_transfer_engine(self, init_info: GlooInitInfo) -> None:
        """Returns at once; a thread waits for the other members, so a late one does not stop this worker's decoding."""
        if self.model_config.use_mla:
            raise PublishError("publish.engine=gloo cannot update a model with multi-head latent attention")
        if self.device.type != "cpu" and has_experts(self.model):
            raise PublishError(
                "publish.engine=gloo cannot update a mixture of experts on a GPU, where vLLM reorders them"
            )
        dtypes = map(dtype_named, init_info.dtype_names)
        tensors = {
            name: torch.empty(shape, dtype=dtype, device="meta")
            for name, dtype, shape in zip(init_info.names, dtypes, init_info.shapes, strict=True)
        }
        self._slices = find_slices(self.model, tensors)
        self._pieces = own_pieces(self._slices, tensors) if init_info.sliced else whole_pieces(tensors)
        self._buckets = buckets(self._pieces, init_info.bucket_bytes)
        self._memory = two_buffers(self._buckets)
        self._spare: Spare = {}
        # A thread for each group: that of a broken one may hang until its deadline.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="publish")
        self._group: Future[GlooGroup] | None = self._thread.submit(self._join, init_info)
        self._staged: Future[Staging] | None = None
        self._keeps_last = init_info.delta
        self._last: Staging | None = None

    def _join(self, info: GlooInitInfo) -> GlooGroup:
        part, num_parts = self.parallel_config.rank, self.parallel_config.world_size
        worker = info.rank_offset + part
        rendezvous = Rendezvous(info.master_address, info.master_port, info.timeout_s)
        rendezvous.announce(worker, self._slices)
        if not info.sliced:
            return rendezvous.group(group_name(0), worker, 1 + info.num_workers)
        generator = (info.rank_offset - 1) // num_parts
        return rendezvous.group(group_name(part), 1 + generator, 1 + info.num_workers // num_parts)

    def stage(self, at_once: bool = False) -> None:
        """Returns at once; the weights come in the thread."""
        self._staged = self._thread.submit(self._receive, at_once)

    def start_weight_update(self) -> None:
        """Nothing: the model stays whole until its layers take over the new weights."""

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: GlooUpdateInfo) -> None:
        """Switches to the staged weights.

        Raises:
            PublishError: they did not come whole, or the model does not hold them now.
        """
        if not update_info.staged:
            self.stage(at_once=True)
        assert self._staged is not None
        staging, self._staged = self._staged.result(), None
        staging.switch()
        staging.verify()
        self._last = staging if self._keeps_last else None

    def finish_weight_update(self) -> None:
        """Nothing is left to do."""

    def shutdown(self) -> None:
        self._group = self._staged = self._last = None

    def _receive(self, at_once: bool) -> Staging:
        """In the thread: how long each bucket is, all buckets, then their checksums; reports to rank 0."""
        assert self._group is not None
        group = self._group.result()
        spare = None if self._keeps_last else self._spare
        staging = Staging(self.model, self._slices, self._pieces, self.device, at_once, spare)
        lengths = torch.empty(len(self._buckets), dtype=torch.int64)
        group.broadcast(lengths).wait()
        received: list[int] = []
        for bucket, buffer in self._receive_buckets(group, staging, lengths.tolist()):
            received.append(checksum(buffer))
            for piece, part in unpack(bucket, buffer):
                staging.put(piece, part)
        sent = torch.empty(len(received), dtype=torch.int64)
        group.broadcast(sent).wait()
        wrong = [k for k, (mine, theirs) in enumerate(zip(received, sent.tolist(), strict=True)) if mine != theirs]
        group.report(wrong[0] if wrong else ALL_ARRIVED)
        if wrong:
            raise PublishError(f"buckets {wrong} of {len(received)} arrived with another checksum than they were sent")
        return staging

    def _receive_buckets(
        self, group: GlooGroup, staging: Staging, lengths: list[int]
    ) -> Iterator[tuple[list[Piece], torch.Tensor]]:
        """Each bucket with its bytes. While one is put in its places, the next one comes."""
        coming: deque[tuple[torch.Tensor, Work]] = deque()
        for k in range(-1, len(lengths)):
            if k + 1 < len(lengths):
                buffer = self._buffer(staging, self._buckets[k + 1], lengths[k + 1])
                coming.append((buffer, group.broadcast(buffer)))
            if k >= 0:
                bucket = self._buckets[k]
                buffer, work = coming.popleft()
                work.wait()
                yield bucket, buffer if lengths[k] == WHOLE else self._changed(bucket, buffer)

    def _buffer(self, staging: Staging, bucket: list[Piece], length: int) -> torch.Tensor:
        """Where a bucket comes: if it can, where it is to stay."""
        if length != WHOLE:
            return torch.empty(length, dtype=torch.uint8)
        place = staging.place(bucket)
        return next(self._memory)[: total_bytes(bucket)] if place is None else place

    def _changed(self, bucket: list[Piece], buffer: torch.Tensor) -> torch.Tensor:
        """The bucket's bytes, of their changes. Damaged ones leave the old bytes, whose checksum is another."""
        assert self._last is not None, "changes of weights that this worker does not have"
        whole = self._last.pack(bucket)
        try:
            decode(buffer, whole)
        except ValueError:
            log.exception("a bucket could not be decoded")
        return whole


def group_name(part: int) -> str:
    """Of the group whose workers all receive the same."""
    return f"part-{part}"


class WorkerExtension:
    """vLLM's `worker_extension_cls`: its workers import this module, and their class gets these methods."""

    weight_transfer_engine: WeightTransferEngine[Any, Any]
    _weight_update_active: bool

    def stage_weights(self) -> None:
        assert isinstance(self.weight_transfer_engine, GlooWeightTransferEngine)
        self.weight_transfer_engine.stage()

    def switch_weights(self, update_info: dict[str, Any]) -> None:
        """vLLM's start, update and finish in one, as the first and the last do nothing here: each costs a round trip
        under the pause."""
        self.weight_transfer_engine.update_weights(update_info)

    def leave_publish_group(self) -> None:
        """Ready for another group, whatever became of the last update; a whole update has to follow a broken one."""
        self._weight_update_active = False
        self.weight_transfer_engine.shutdown()
        abandon_reload(self.weight_transfer_engine.model)


if "gloo" not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine("gloo", GlooWeightTransferEngine)
