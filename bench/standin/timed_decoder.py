"""Continuous batching that only takes its time: n running sequences wait t(n) for each token of all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(eq=False)
class _Group:
    lengths: NDArray[np.int32]
    done: asyncio.Future[None]
    versions: list[int] = field(default_factory=list)
    """Of each decode step that it has seen."""

    @property
    def num_running(self) -> int:
        return int((self.lengths > len(self.versions)).sum())


class TimedDecoder:
    """Decodes on the event loop that calls it.

    Args:
        step_s: number of running sequences → seconds of a decode step.
    """

    def __init__(self, step_s: Callable[[int], float]) -> None:
        self._step_s = step_s
        self._groups: list[_Group] = []
        self._decoding: asyncio.Task[None] | None = None
        self._step = asyncio.Lock()
        """Held for each decode step."""
        self._resumed = asyncio.Event()
        self._resumed.set()
        self._version = -1

    async def decode(self, lengths: NDArray[np.int32]) -> NDArray[np.int32]:
        """All tokens of one group. Returns the version of each decode step, as many as its longest completion has."""
        group = _Group(lengths, asyncio.get_running_loop().create_future())
        self._groups.append(group)
        if self._decoding is None or self._decoding.done():
            self._decoding = asyncio.create_task(self._decode())
        await group.done
        return np.asarray(group.versions, np.int32)

    async def pause(self) -> None:
        """No step begins from now on; the present one has ended when this returns."""
        self._resumed.clear()
        async with self._step:
            pass

    def resume(self, version: int) -> None:
        self._version = version
        self._resumed.set()

    async def _decode(self) -> None:
        """Until no group is left. Each step ends at its moment, so that a late wake-up is not added up."""
        loop = asyncio.get_running_loop()
        end_s = loop.time()
        while self._groups:
            if not self._resumed.is_set():
                await self._resumed.wait()
                end_s = loop.time()
            async with self._step:
                end_s += self._step_s(sum(group.num_running for group in self._groups))
                await asyncio.sleep(max(0.0, end_s - loop.time()))
                for group in self._groups:
                    group.versions.append(self._version)
            for group in [group for group in self._groups if not group.num_running]:
                self._groups.remove(group)
                if not group.done.done():  # else whoever asked has given up
                    group.done.set_result(None)
