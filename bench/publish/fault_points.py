"""Where a worker of a generator can be held in a publish, and have a byte of what it receives flipped.

Files in a folder say so, because the worker is another process: NAME-PHASE exists while it is to be held there, and
NAME-PHASE.reached once it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from asyncrl.publish.groups.base import Transfer
from asyncrl.publish.groups.gloo import GlooGroup
from asyncrl.publish.groups.nccl import NcclGroup
from asyncrl.publish.vllm.receiver import VllmReceiver
from tests.support import nccl

PHASES = {"rendezvous": "_join", "transfer": "_receive_buckets", "switch": "take_over"}
"""Phase → the method of VllmReceiver at whose beginning the worker is held."""
POLL_S = 0.005
DEADLINE_S = 60.0


def install(name: str, folder: Path) -> None:
    """In the generator's process, before vLLM forks its workers."""
    for phase, method in PHASES.items():
        setattr(VllmReceiver, method, _held_first(name, folder, phase))
    nccl.install()
    for kind in (GlooGroup, NcclGroup):
        kind.broadcast = _flipping(kind.broadcast, folder / f"{name}-flip")  # type: ignore[method-assign]


@contextmanager
def held(name: str, folder: Path, phase: str) -> Iterator[None]:
    point = folder / f"{name}-{phase}"
    point.touch()
    try:
        yield
    finally:
        point.unlink()
        point.with_suffix(".reached").unlink(missing_ok=True)


def wait_until_held(name: str, folder: Path, phase: str) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not (folder / f"{name}-{phase}.reached").exists():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"{name} did not come to the {phase}")
        time.sleep(POLL_S)


@contextmanager
def flipped(name: str, folder: Path, *, always: bool) -> Iterator[None]:
    """A byte of the next bucket that the worker receives, or of each."""
    point = folder / f"{name}-flip"
    point.write_text("always" if always else "once")
    try:
        yield
    finally:
        point.unlink(missing_ok=True)


def _held_first(name: str, folder: Path, phase: str) -> Any:
    original = getattr(VllmReceiver, PHASES[phase])
    point = folder / f"{name}-{phase}"

    def method(self: VllmReceiver, *args: Any) -> Any:
        if point.exists():
            point.with_suffix(".reached").touch()
            while point.exists():
                time.sleep(POLL_S)
        return original(self, *args)

    return method


def _flipping(broadcast: Callable[[Any, torch.Tensor], Transfer], point: Path) -> Any:
    return lambda self, tensor: _Flipping(broadcast(self, tensor), tensor, point)


class _Flipping:
    """A broadcast whose bytes arrive changed while the file says so."""

    def __init__(self, work: Transfer, tensor: torch.Tensor, point: Path) -> None:
        self._work, self._tensor, self._point = work, tensor, point

    def wait(self) -> None:
        self._work.wait()
        if self._tensor.dtype == torch.uint8 and self._point.exists():
            if self._point.read_text() == "once":
                self._point.unlink()
            self._tensor[7] ^= 1
