"""Gloo groups beside torch.distributed's default one, and the store at which their members meet.

Every wait ends with an error after the group's time limit.
"""

from __future__ import annotations

from datetime import timedelta

import msgspec
import torch
from torch.distributed import PrefixStore, ProcessGroupGloo
from torch.distributed.distributed_c10d import BroadcastOptions, Work

from asyncrl.errors import PublishError
from asyncrl.publish.groups.store import open_store
from asyncrl.publish.plan import Slice
from asyncrl.transport.sockets import LOOPBACK


class Rendezvous:
    """Workers leave their plans in its store, and the groups find their addresses.

    Args:
        host: of learner rank 0.
    """

    def __init__(self, host: str, store_file: str, timeout_s: float) -> None:
        self._host = host
        self._timeout = timedelta(seconds=timeout_s)
        self._store = open_store(store_file, timeout_s)

    def announce(self, worker: int, slices: list[Slice]) -> None:
        """This worker is here, and what it keeps."""
        self._store.set(f"plan/{worker}", msgspec.msgpack.encode(slices))

    def plan(self, worker: int, who: str) -> list[Slice]:
        """What a worker keeps, once it has come.

        Raises:
            PublishError: it did not come in time.
        """
        try:
            encoded = self._store.get(f"plan/{worker}")
        except RuntimeError as error:
            seconds = self._timeout.total_seconds()
            raise PublishError(f"rendezvous: {who} did not come within {seconds:.0f} s (publish.timeout_s)") from error
        return msgspec.msgpack.decode(encoded, type=list[Slice])

    def group(self, name: str, rank: int, world_size: int) -> GlooGroup:
        """The group `name`, once all its members have come."""
        options = ProcessGroupGloo._Options()
        options._timeout = self._timeout
        options._devices = [_local_device(self._host)]
        return GlooGroup(ProcessGroupGloo(PrefixStore(name, self._store), rank, world_size, options))


class GlooGroup:
    """Broadcasts from rank 0, and one report back from each of the others."""

    def __init__(self, group: ProcessGroupGloo) -> None:
        self._group = group

    def broadcast(self, tensor: torch.Tensor) -> Work:
        """From rank 0, in place; it has arrived when the returned work has been waited for."""
        options = BroadcastOptions()
        options.rootRank = 0
        return self._group.broadcast([tensor], options)

    def report(self, value: int) -> None:
        """To rank 0."""
        self._group.send([torch.tensor([value])], 0, 0).wait()

    def reported(self, rank: int) -> int:
        """What a rank reports; waits for it."""
        value = torch.empty(1, dtype=torch.int64)
        self._group.recv([value], rank, 0).wait()
        return int(value)


def _local_device(master_host: str) -> ProcessGroupGloo.Device:
    """Loopback when the master is on loopback; else the interface that this machine's own name resolves to."""
    if master_host == LOOPBACK:
        return ProcessGroupGloo.create_device(hostname=LOOPBACK)
    return ProcessGroupGloo.create_default_device()
