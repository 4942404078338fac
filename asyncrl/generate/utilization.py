"""Where a generator's time goes, from its first served version on: busy, paused for a publish, or idle."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Totals:
    """Sums since the first version was served; what is neither busy nor paused was idle."""

    num_tokens: int = 0
    """Tokens of the groups that were finished."""
    busy_s: float = 0.0
    """At least one lease was in hand (sampled or scored), and generation was not paused."""
    paused_s: float = 0.0
    """From when a publish's pause has taken effect (the engine ends its decode step) to its resume."""
    elapsed_s: float = 0.0


class Utilization:
    """Adds up the time between events. Begins paused: there are no weights yet.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last_s = 0.0
        self._started = False
        self._paused = True
        self._totals = Totals()
        self.num_leases = 0

    @property
    def totals(self) -> Totals:
        """Up to now."""
        self._settle()
        return self._totals

    def lease_begins(self) -> None:
        self._settle()
        self.num_leases += 1

    def lease_ends(self, num_tokens: int) -> None:
        """`num_tokens`: of its group; 0 when it failed."""
        self._settle()
        self.num_leases -= 1
        self._totals = replace(self._totals, num_tokens=self._totals.num_tokens + num_tokens)

    def pause(self) -> None:
        self._settle()
        self._paused = True

    def resume(self) -> None:
        """The first time: everything is counted from here on."""
        self._settle()
        self._started, self._paused = True, False

    def _settle(self) -> None:
        """Books the time since the last event to the state that it was spent in."""
        now_s = self._clock()
        passed_s, self._last_s = now_s - self._last_s, now_s
        if not self._started:
            return
        totals = self._totals
        self._totals = replace(
            totals,
            busy_s=totals.busy_s + (passed_s if self.num_leases and not self._paused else 0.0),
            paused_s=totals.paused_s + (passed_s if self._paused else 0.0),
            elapsed_s=totals.elapsed_s + passed_s,
        )
