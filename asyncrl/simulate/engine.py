"""An inference engine on a virtual clock: continuous batching, exact for sequences that advance at one rate.

All n running sequences of an engine gain one token in each decode step, which takes t(n) = a + b·n. So one number, its
*progress* (decode steps so far, a real number), serves them all: a sequence of L tokens that began at progress p ends
at p + L. Between two ends n is constant, and progress is linear in time.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from asyncrl.simulate.timings import Timings

ROUNDING = 1e-6
"""Tokens; a token that is complete but for this is complete."""


@dataclass
class _RunningGroup:
    num_open: int
    starts: list[float] = field(default_factory=list)
    """Progress at which each sequence that has begun began."""
    lengths: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class SampledGroup:
    """A group whose last sequence has ended."""

    lease_id: int
    tokens_by_version: dict[int, int]
    """Which version sampled how many tokens."""

    @property
    def num_tokens(self) -> int:
        return sum(self.tokens_by_version.values())

    @property
    def first_version(self) -> int:
        return min(self.tokens_by_version)


class SimulatedEngine:
    """One engine. Its caller says when time passes: `advance` to each moment that `next_event_s` names.

    Args:
        version: that it serves.
    """

    def __init__(self, timings: Timings, now_s: float, version: int) -> None:
        self._timings = timings
        self._now_s = now_s
        self.progress = 0.0
        """Decode steps so far."""
        self._standstill_s = 0.0
        """Still to pass before the next decode step: prompts to compute, a pause."""
        self._ends: list[tuple[float, int]] = []
        """(−progress at its end, lease) of each running sequence; the next end is the last entry."""
        self._waiting: deque[tuple[int, int, float]] = deque()
        """(lease, length, progress that it cannot begin before) of sequences without room."""
        self._groups: dict[int, _RunningGroup] = {}
        self._switch_progress = [0.0]
        self._versions = [version]
        """Served from the progress at the same place on."""

    @property
    def num_groups(self) -> int:
        """In hand."""
        return len(self._groups)

    def submit(self, lease_id: int, prompt_tokens: int, lengths: Sequence[int], delay_steps: float = 0.0) -> None:
        """A group begins now; the engine has been advanced to this moment.

        Args:
            delay_steps: until the next decode step begins; none does when the engine is empty.
        """
        self._groups[lease_id] = _RunningGroup(len(lengths))
        self._standstill_s += prompt_tokens * self._timings.prefill_per_token_s
        earliest = self.progress + (delay_steps if self._ends else 0.0)
        self._waiting.extend((lease_id, length, earliest) for length in lengths)
        self._fill()

    def switch(self, version: int, stall_s: float) -> None:
        """Tokens from here on are of `version`; none is sampled for `stall_s`. The engine has been advanced."""
        self._standstill_s += stall_s
        self._switch_progress.append(self.progress)
        self._versions.append(version)

    def advance(self, now_s: float) -> list[SampledGroup]:
        """Lets time pass; the groups that ended by then."""
        ended: list[SampledGroup] = []
        if now_s == self._now_s:
            return ended
        standstill_s = min(self._standstill_s, now_s - self._now_s)
        self._standstill_s -= standstill_s
        time_s = self._now_s + standstill_s
        base_s, per_sequence_s = self._timings.decode_base_s, self._timings.decode_per_sequence_s
        while self._ends:
            step_s = base_s + per_sequence_s * len(self._ends)
            end = -self._ends[-1][0]
            reached_s = time_s + (end - self.progress) * step_s
            if reached_s > now_s:
                self.progress += (now_s - time_s) / step_s
                break
            time_s, self.progress = reached_s, end
            _, lease_id = self._ends.pop()
            group = self._groups[lease_id]
            group.num_open -= 1
            if not group.num_open:
                ended.append(SampledGroup(lease_id, self._tokens_by_version(self._groups.pop(lease_id))))
            if self._waiting:
                self._fill()
        self._now_s = now_s
        return ended

    def next_event_s(self) -> float:
        """When the next group ends, or a sequence makes room for one that waits; ∞ when nothing runs."""
        time_s, progress = self._now_s + self._standstill_s, self.progress
        base_s, per_sequence_s = self._timings.decode_base_s, self._timings.decode_per_sequence_s
        num_running, num_ended = len(self._ends), dict.fromkeys(self._groups, 0)
        for negative_end, lease_id in reversed(self._ends):
            time_s += (-negative_end - progress) * (base_s + per_sequence_s * num_running)
            progress = -negative_end
            num_running -= 1
            num_ended[lease_id] += 1
            if self._waiting or num_ended[lease_id] == self._groups[lease_id].num_open:
                return time_s
        return math.inf

    def _fill(self) -> None:
        for _ in range(min(len(self._waiting), self._timings.max_sequences - len(self._ends))):
            lease_id, length, earliest = self._waiting.popleft()
            start = max(self.progress, earliest)
            group = self._groups[lease_id]
            group.starts.append(start)
            group.lengths.append(length)
            self._ends.append((-(start + length), lease_id))
        self._ends.sort()

    def _tokens_by_version(self, group: _RunningGroup) -> dict[int, int]:
        last = len(self._versions) - 1
        if bisect_right(self._switch_progress, min(group.starts)) - 1 == last:
            return {self._versions[last]: sum(group.lengths)}
        counts: dict[int, int] = {}
        for start, length in zip(group.starts, group.lengths, strict=True):
            place, num_before = bisect_right(self._switch_progress, start) - 1, 0
            while num_before < length:
                num_by_then = length
                if place < last:
                    num_by_then = min(length, int(self._switch_progress[place + 1] - start + ROUNDING))
                if num_by_then > num_before:
                    version = self._versions[place]
                    counts[version] = counts.get(version, 0) + num_by_then - num_before
                place, num_before = place + 1, num_by_then
        return counts
