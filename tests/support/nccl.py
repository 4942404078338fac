"""A stand-in for NCCL where there is no GPU. Bytes really travel, over gloo; everything around them is as bad as NCCL.

- The first broadcast makes the communicator and returns when all members have come, however long that takes.
- A wait has no time limit. That a member is dead or frozen is never noticed.
- Only `abort` ends a wait, from another thread.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import ProcessGroupGloo, Store

from asyncrl.publish.groups import nccl
from asyncrl.transport.sockets import LOOPBACK

FOR_EVER = timedelta(days=1)
POLL_S = 0.0005


def install() -> None:
    """In this process, and in those that it forks."""
    nccl.communicator = StandInCommunicator


class StandInCommunicator:
    """As torch's ProcessGroupNCCL, on the CPU."""

    def __init__(self, store: Store, rank: int, world_size: int, timeout: timedelta) -> None:
        options = ProcessGroupGloo._Options()
        options._timeout = FOR_EVER
        options._devices = [ProcessGroupGloo.create_device(hostname=LOOPBACK)]
        self._make: Callable[[], ProcessGroupGloo] = lambda: ProcessGroupGloo(store, rank, world_size, options)
        self._gloo: ProcessGroupGloo | None = None
        self._aborted = threading.Event()

    def broadcast(self, tensors: list[torch.Tensor], options: Any) -> StandInWork:
        if self._gloo is None:
            threading.Thread(target=self._connect, daemon=True).start()
            while self._gloo is None:
                _raise_when(self._aborted)
        return StandInWork(self._gloo.broadcast(tensors, options), self._aborted)

    def abort(self) -> None:
        self._aborted.set()
        # The destructor of gloo's group waits for what is under way, which never ends.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._gloo))

    def _connect(self) -> None:
        try:
            self._gloo = self._make()
        except RuntimeError:  # NCCL would wait on
            self._aborted.wait()


class StandInWork:
    """One broadcast."""

    def __init__(self, work: Any, aborted: threading.Event) -> None:
        self._work = work
        self._aborted = aborted

    def wait(self) -> None:
        while not (self._work.is_completed() and self._work.is_success()):
            _raise_when(self._aborted)


def _raise_when(aborted: threading.Event) -> None:
    if aborted.wait(POLL_S):
        raise RuntimeError("the communicator was aborted")
