"""The learner's end of a publish, on rank 0: what each group of workers receives, and what they say of it.

broadcast    one group:              rank 0 ═▶ every worker of every generator
sliced       a group a TP rank r:    rank 0 ═▶ worker r of every generator, its own slices alone
delta        as sliced, but as changes of the version before, when that is shorter by half
adapter      as sliced at first; then the adapter alone, whole, to every worker
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import zip_longest

import torch

from asyncrl.config.checks.publish import PublishTransport
from asyncrl.config.schema import PublishConfig
from asyncrl.errors import NotWholeError, PublishError
from asyncrl.publish.adapter import is_adapter
from asyncrl.publish.checksum import checksum
from asyncrl.publish.delta import encode
from asyncrl.publish.generator_commands import GeneratorCommands
from asyncrl.publish.groups.base import Group, Transfer, device_of
from asyncrl.publish.groups.rendezvous import Rendezvous, new_store_file
from asyncrl.publish.plan import (
    Piece,
    dtype_name,
    own_pieces,
    pack,
    place_alone,
    total_bytes,
    two_buffers,
    whole_pieces,
)
from asyncrl.publish.receiver import ALL_ARRIVED, KEPT, WHOLE, JoinInfo, group_name, stream_buckets
from asyncrl.publish.streams import own_stream
from asyncrl.transport.sockets import Network

Tensors = Mapping[str, torch.Tensor]
Parcel = tuple[torch.Tensor, int]
"""What travels for one bucket, and the checksum of the bucket."""


@dataclass
class _Stream:
    """The workers that receive the same buckets."""

    workers: list[str]
    group: Group
    buckets: list[list[Piece]]
    num_sent_bytes: int = 0
    """To each worker, in the last transfer."""
    checksums: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._memory = two_buffers(self.buckets, self.group.device)

    def changes(self, old: Tensors, new: Tensors) -> list[Parcel] | None:
        """None when they would not be shorter than half of all."""
        parcels: list[Parcel] = []
        room_bytes = sum(map(total_bytes, self.buckets)) // 2
        for bucket in self.buckets:
            whole = self._bytes(bucket, new)
            parcels.append((encode(self._bytes(bucket, old), whole), checksum(whole)))
            room_bytes -= parcels[-1][0].numel()
            if room_bytes < 0:
                return None
        return parcels

    def whole(self, tensors: Tensors, lengths: list[int]) -> Iterator[Parcel]:
        """Each bucket that is not kept."""
        for bucket, length in zip(self.buckets, lengths, strict=True):
            if length != KEPT:
                buffer = self._bytes(bucket, tensors)
                yield buffer, checksum(buffer)

    def _bytes(self, bucket: list[Piece], tensors: Tensors) -> torch.Tensor:
        parts = [piece.region.view(tensors[piece.name]) for piece in bucket]
        alone = place_alone(bucket, parts[0], self.group.device)
        return pack(bucket, parts, next(self._memory)) if alone is None else alone

    def begin(self, lengths: list[int]) -> Transfer:
        """Says how long each parcel will be."""
        self.num_sent_bytes, self.checksums = 0, []
        return self._tell(lengths)

    def send(self, parcel: Parcel) -> Transfer:
        buffer, check = parcel
        self.num_sent_bytes += buffer.numel()
        self.checksums.append(check)
        return self.group.broadcast(buffer)

    def end(self) -> Transfer:
        return self._tell(self.checksums)

    def _tell(self, numbers: list[int]) -> Transfer:
        return self.group.broadcast(torch.tensor(numbers, dtype=torch.int64, device=self.group.device))


class Sender:
    """Rank 0 of the groups.

    Args:
        config: with engine and transport resolved.
        metas: Hugging Face name → meta tensor of the dtype that is sent; with engine=adapter those of the base weights
            and of the adapter (`adapter.py`).

    Raises:
        PublishError: a generator did not join.
    """

    def __init__(self, commands: GeneratorCommands, network: Network, config: PublishConfig, metas: Tensors) -> None:
        transport: PublishTransport = "nccl" if config.transport == "nccl" else "gloo"
        self._commands = commands
        self._config = config
        self._delta = config.engine == "delta"
        self._adapter = config.engine == "adapter"
        self._device = device_of(transport)
        self._served: Tensors | None = None
        """What every worker has, once a transfer has succeeded."""
        store_file = new_store_file(network.rendezvous_dir)
        rendezvous = Rendezvous(store_file, config.timeout_s)
        info = JoinInfo(
            store_file=store_file,
            rank_offset=1,
            num_workers=len(commands.workers),
            transport=transport,
            sliced=config.engine != "broadcast",
            delta=self._delta,
            bucket_bytes=config.bucket_bytes,
            timeout_s=config.timeout_s,
            names=list(metas),
            dtype_names=[dtype_name(tensor.dtype) for tensor in metas.values()],
            shapes=[list(tensor.shape) for tensor in metas.values()],
        )
        commands.join(asdict(info))
        plans = [rendezvous.plan(rank, who) for rank, who in enumerate(commands.workers, start=1)]
        self._streams = []
        num_streams = commands.tensor_parallel if info.sliced else 1
        for part in range(num_streams):
            workers = commands.workers[part::num_streams]
            pieces = own_pieces(plans[part], metas) if info.sliced else whole_pieces(metas)
            group = rendezvous.group(transport, self._device, group_name(part), 0, 1 + len(workers))
            self._streams.append(_Stream(workers, group, stream_buckets(pieces, metas, config.bucket_bytes)))

    def send(self, version: int, tensors: Tensors) -> dict[str, float]:
        """Returns `time/publish_stall_s` and `publish/bytes`, those that workers received together.

        Raises:
            NotWholeError: something arrived changed, or a model does not hold it.
            PublishError: a generator was late or is gone.
        """
        recompute_kv = self._config.kv_cache == "recompute"
        served, self._served = self._served, None
        if self._config.staged:
            self._commands.stage()
            self._transfer(served, tensors)
            stall_s = self._commands.switch(version, {"staged": True}, recompute_kv)
        else:
            with self._commands.switching(version, {"staged": False}, recompute_kv) as switched:
                self._transfer(served, tensors)
            stall_s = switched.result()
        self._served = tensors if self._delta or self._adapter else None
        num_bytes = sum(len(stream.workers) * stream.num_sent_bytes for stream in self._streams)
        return {"time/publish_stall_s": stall_s, "publish/bytes": float(num_bytes)}

    def shutdown(self) -> None:
        for stream in self._streams:
            stream.group.abort()
        self._streams = []

    def _transfer(self, served: Tensors | None, tensors: Tensors) -> None:
        """Every bucket to its group, then the checksums; then each worker's report."""
        try:
            with own_stream(self._device):
                self._broadcast(served, tensors)
        except RuntimeError as error:
            raise PublishError(f"transfer: a broadcast failed ({str(error).splitlines()[0]})") from error
        wrong = []
        # Every report is taken before the first failure is told: one that is not would hold up the second try.
        for stream in self._streams:
            for rank, who in enumerate(stream.workers, start=1):
                bucket = self._reported(stream.group, rank, who)
                if bucket != ALL_ARRIVED:
                    wrong.append(f"bucket {bucket} of {len(stream.buckets)} came to {who} with another checksum")
        if wrong:
            raise NotWholeError(f"transfer: {wrong[0]}")

    def _broadcast(self, served: Tensors | None, tensors: Tensors) -> None:
        """While a bucket travels, the next one is packed, or at least summed."""
        changes = None
        if served is not None and self._delta:
            changes = [stream.changes(served, tensors) for stream in self._streams]
        parcels: list[Iterator[Parcel]] = []
        travelling: list[Transfer] = []
        for k, stream in enumerate(self._streams):
            changed = None if changes is None else changes[k]
            if changed is None:
                are_kept = self._adapter and served is not None
                lengths = [KEPT if are_kept and not is_adapter(bucket[0].name) else WHOLE for bucket in stream.buckets]
                travelling.append(stream.begin(lengths))
                parcels.append(stream.whole(tensors, lengths))
            else:
                travelling.append(stream.begin([buffer.numel() for buffer, _ in changed]))
                parcels.append(iter(changed))
        for row in zip_longest(*parcels):
            leaving = [stream.send(parcel) for stream, parcel in zip(self._streams, row, strict=True) if parcel]
            for work in travelling:
                work.wait()
            travelling = leaving
        for work in [*travelling, *(stream.end() for stream in self._streams)]:
            work.wait()

    def _reported(self, group: Group, rank: int, who: str) -> int:
        try:
            return group.reported(rank)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise PublishError(f"transfer: {who} did not say that all has come ({reason})") from error
