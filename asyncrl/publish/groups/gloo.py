"""A publish group over gloo: through host memory and TCP, on any machine."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
from torch.distributed import ProcessGroupGloo, Store
from torch.distributed.distributed_c10d import BroadcastOptions

from asyncrl.publish.groups.base import ROOT, Transfer
from asyncrl.publish.groups.members import require_members
from asyncrl.transport.sockets import LOOPBACK


class GlooGroup:
    """See `Group`. The constructor waits for all members, and lets nobody else in.

    Gloo ends each wait at its time limit, and at once when a peer has closed its sockets.

    It binds the first interface of GLOO_SOCKET_IFNAME, which each role sets; without it, loopback.
    """

    def __init__(self, store: Store, rank: int, world_size: int, timeout_s: float) -> None:
        options = ProcessGroupGloo._Options()
        options._timeout = timedelta(seconds=timeout_s)
        options._devices = [_local_device()]
        self.device = torch.device("cpu")
        self._group = ProcessGroupGloo(store, rank, world_size, options)
        require_members(self._group, store, rank, world_size)

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


def _local_device() -> ProcessGroupGloo.Device:
    """Torch reads the variable for its own default group alone."""
    interface = os.environ.get("GLOO_SOCKET_IFNAME")
    if interface is None:
        return ProcessGroupGloo.create_device(hostname=LOOPBACK)
    return ProcessGroupGloo.create_device(interface=interface.partition(",")[0])
