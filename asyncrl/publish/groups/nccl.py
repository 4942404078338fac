"""A publish group over NCCL: from GPU to GPU. Never run on GPUs so far; tests put a stand-in behind `communicator`.

NCCL itself has no deadlines. A member that is dead or frozen leaves the others in a kernel or in the set-up of the
communicator until somebody aborts it, so each call is under a watchdog. Reports go through the store, whose waits have
a time limit of their own and need no GPU.

torch's own watchdog would end the whole process instead. It does not run in a process group that was made with
TORCH_NCCL_BLOCKING_WAIT; there `wait` returns when the bytes have arrived and raises on NCCL's errors (read in torch's
ProcessGroupNCCL.cpp).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import Store
from torch.distributed.distributed_c10d import BroadcastOptions

from asyncrl.publish.groups.base import ROOT, Transfer
from asyncrl.publish.groups.watchdog import Watchdog

_BLOCKING_WAIT = "TORCH_NCCL_BLOCKING_WAIT"


class NcclGroup:
    """See `Group`. The first broadcast waits for all members."""

    def __init__(self, store: Store, rank: int, world_size: int, device: torch.device, timeout_s: float) -> None:
        self.device = device
        self._store = store
        self._rank = rank
        self._num_reports: Counter[int] = Counter()
        self._communicator = communicator(store, rank, world_size, timedelta(seconds=timeout_s))
        self._watchdog = Watchdog(timeout_s, self._communicator.abort)

    def broadcast(self, tensor: torch.Tensor) -> Transfer:
        options = BroadcastOptions()
        options.rootRank = ROOT
        with self._watchdog.guard():
            work = self._communicator.broadcast([tensor], options)
        return _GuardedTransfer(work, self._watchdog)

    def report(self, value: int) -> None:
        self._store.set(self._next_report(self._rank), str(value))

    def reported(self, rank: int) -> int:
        return int(self._store.get(self._next_report(rank)))

    def abort(self) -> None:
        self._watchdog.abort("the publish group was left")

    def _next_report(self, rank: int) -> str:
        self._num_reports[rank] += 1
        return f"report/{rank}/{self._num_reports[rank]}"


class _GuardedTransfer:
    """See `Transfer`."""

    def __init__(self, work: Transfer, watchdog: Watchdog) -> None:
        self._work = work
        self._watchdog = watchdog

    def wait(self) -> None:
        with self._watchdog.guard():
            self._work.wait()


def communicator(store: Store, rank: int, world_size: int, timeout: timedelta) -> Any:
    """torch's process group over NCCL, which is in builds for GPUs alone."""
    from torch.distributed import ProcessGroupNCCL

    options = ProcessGroupNCCL.Options()
    options._timeout = timeout
    options.config.blocking = 0  # else its set-up waits inside NCCL, where `abort` does not reach it
    with _blocking_wait():
        return ProcessGroupNCCL(store, rank, world_size, options)


@contextmanager
def _blocking_wait() -> Iterator[None]:
    """For the process groups made in this block. Torch reads it then, and has no option for it."""
    before = os.environ.get(_BLOCKING_WAIT)
    os.environ[_BLOCKING_WAIT] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_BLOCKING_WAIT]
        else:
            os.environ[_BLOCKING_WAIT] = before
