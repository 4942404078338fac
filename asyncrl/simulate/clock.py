"""Virtual time: calls in the order of their moments."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable


class VirtualClock:
    """Time stands still within a call, and jumps to the next one."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._calls: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def at(self, time_s: float, call: Callable[[], None]) -> None:
        """Calls of one moment are made in the order in which they were asked for."""
        heapq.heappush(self._calls, (time_s, next(self._order), call))

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        self.at(self.now_s + seconds, call)

    def step(self) -> bool:
        """Makes the next call. False: there is none."""
        if not self._calls:
            return False
        self.now_s, _, call = heapq.heappop(self._calls)
        call()
        return True
