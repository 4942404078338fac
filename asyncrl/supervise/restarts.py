"""Which role is restarted after a failure, and when. Pure: the caller brings the clock."""

from __future__ import annotations

from collections import Counter

FIRST_DELAY_S = 1.0
"""Doubled with each further failure of the same role that comes soon after its restart."""
LONGEST_DELAY_S = 30.0
LONG_LIFE = 5.0
"""A role that lived longer than this many times its last delay was well: its next delay is the first one again."""


class Restarts:
    """A budget for each role, with back-off.

    Args:
        max_restarts: the budget of one role in the whole run.
        key: the configuration key that sets it.
    """

    def __init__(self, max_restarts: int, key: str) -> None:
        self._max_restarts = max_restarts
        self._key = key
        self._num_granted: Counter[str] = Counter()
        self._due_s: dict[str, float] = {}
        self._delays_s: dict[str, float] = {}
        """The last delay of each role."""
        self._restarted_s: dict[str, float] = {}

    def allows(self, name: str, came_up: bool) -> bool:
        """A role that fails before it has ever come up would fail again: its error ends the run."""
        num_granted = self._num_granted[name]
        return num_granted < self._max_restarts and (came_up or num_granted > 0)

    def grant(self, name: str, now_s: float) -> str:
        """Plans a restart. Returns the plan in words, for people."""
        delay_s = self._next_delay_s(name, now_s)
        self._num_granted[name] += 1
        self._delays_s[name] = delay_s
        self._due_s[name] = self._restarted_s[name] = now_s + delay_s
        return f"restart {self._num_granted[name]} of {self._max_restarts} ({self._key}) in {delay_s:.0f} s"

    def _next_delay_s(self, name: str, now_s: float) -> float:
        if name not in self._delays_s:
            return FIRST_DELAY_S
        last_s = self._delays_s[name]
        lived_s = now_s - self._restarted_s[name]
        return FIRST_DELAY_S if lived_s > LONG_LIFE * last_s else min(2 * last_s, LONGEST_DELAY_S)

    def postpone(self, name: str, now_s: float) -> None:
        """It cannot be started now. It is tried again later, which takes nothing from its budget."""
        self._due_s[name] = now_s + LONGEST_DELAY_S

    def take_due(self, now_s: float) -> list[str]:
        """The roles whose delay is over. Each is returned once."""
        due = [name for name, due_s in self._due_s.items() if due_s <= now_s]
        for name in due:
            del self._due_s[name]
        return due
