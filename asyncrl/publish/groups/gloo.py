"""A publish group over gloo: through host memory and TCP, on any machine."""

from __future__ import annotations

from datetime import timedelta

import torch
from torch.distributed import ProcessGroupGloo, Store
from torch.distributed.distributed_c10d import BroadcastOptions

from asyncrl.publish.groups.base import ROOT, Transfer
from asyncrl.transport.sockets import LOOPBACK


class GlooGroup:
    """See `Group`. The constructor waits for all members.

    Gloo ends each wait at its time limit, and at once when a peer has closed its sockets.

    Args:
        host: of the rendezvous; on loopback the group stays on loopback.
    """

    def __init__(self, store: Store, rank: int, world_size: int, host: str, timeout_s: float) -> None:
        options = ProcessGroupGloo._Options()
        options._timeout = timedelta(seconds=timeout_s)
        options._devices = [_local_device(host)]
        self.device = torch.device("cpu")
        self._group = ProcessGroupGloo(store, rank, world_size, options)

    def broadcast(self, tensor: torch.Tensor) -> Transfer:
        options = BroadcastOptions()
        options.rootRank = ROOT
        return self._group.broadcast([tensor], options)

    def report(self, value: int) -> None:
        self._group.send([torch.tensor([value])], ROOT, 0).wait()

    def reported(self, rank: int) -> int:
        value = torch.empty(1, dtype=torch.int64)
        self._group.recv([value], rank, 0).wait()
        return int(value)

    def abort(self) -> None:
        """Nothing: gloo cannot end a wait before its time limit. The last reference closes the sockets."""


def _local_device(master_host: str) -> ProcessGroupGloo.Device:
    """Loopback when the master is on loopback; else the interface that this machine's own name resolves to."""
    if master_host == LOOPBACK:
        return ProcessGroupGloo.create_device(hostname=LOOPBACK)
    return ProcessGroupGloo.create_default_device()
