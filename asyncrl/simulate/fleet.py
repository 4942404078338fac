"""The generators of a simulated run: their engines, who is given leases, and where their time goes.

Consumes   leases; versions.
Produces   sampled groups, once they are scored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from asyncrl.replay.membership import Membership
from asyncrl.simulate.clock import VirtualClock
from asyncrl.simulate.engine import SampledGroup, SimulatedEngine
from asyncrl.simulate.timings import Timings
from asyncrl.transport.messages.learning import Member


@dataclass
class _Generator:
    name: str
    engine: SimulatedEngine
    started_s: float
    num_leases: int = 0
    """Sampled or scored."""
    num_tokens: int = 0
    """Of finished groups."""
    idle_s: float = 0.0
    paused_s: float = 0.0
    free_since_s: float = 0.0
    """Neither leased nor paused since then, when it has no lease."""
    scheduled: int = 0
    """Number of the engine's next event; earlier ones do not count any more."""
    died_s: float | None = None

    def elapsed_s(self, now_s: float) -> float:
        return (now_s if self.died_s is None else self.died_s) - self.started_s


@dataclass(frozen=True)
class FleetTotals:
    """Sums over all generators, of now and before."""

    num_tokens: int
    num_decode_steps: float
    idle_s: float
    paused_s: float
    elapsed_s: float

    @property
    def busy_s(self) -> float:
        """With a lease in hand and not paused; as `generate/utilization.py` counts."""
        return self.elapsed_s - self.idle_s - self.paused_s


class Fleet:
    """Generators 0 … N−1.

    Args:
        credit: leases that one of them holds at once.
        on_group: a group: scored, and in replay's hands.
    """

    def __init__(
        self,
        clock: VirtualClock,
        timings: Timings,
        num_generators: int,
        credit: int,
        on_group: Callable[[SampledGroup], None],
    ) -> None:
        self._clock = clock
        self._timings = timings
        self._credit = credit
        self._on_group = on_group
        self.membership = Membership()
        self.version = 0
        """The last that the generators switched to."""
        self._serving: dict[str, _Generator] = {}
        self._ended: list[_Generator] = []
        self._changed: dict[str, _Generator] = {}
        """Their next event is not scheduled yet."""
        for rank in range(num_generators):
            self.join(f"generator-{rank}")

    @property
    def num_serving(self) -> int:
        return len(self._serving)

    def join(self, name: str) -> None:
        """It is up and serves the present version."""
        now_s = self._clock.now_s
        engine = SimulatedEngine(self._timings, now_s, self.version)
        self._serving[name] = _Generator(name, engine, now_s, free_since_s=now_s)
        self.membership.join(Member(name, "", 1), self._credit, serves=True, held=set())

    def die(self, name: str) -> None:
        """Its leases come to nothing."""
        generator = self._serving.pop(name)
        self._settle_idle(generator)
        generator.died_s = self._clock.now_s
        self._ended.append(generator)
        self._changed.pop(name, None)
        self.membership.remove(name)

    def submit(self, name: str, lease_id: int, prompt_tokens: int, lengths: Sequence[int], delay_steps: float) -> None:
        """Grants a lease, which the engine takes in after part of a decode step. `schedule` has to follow."""
        generator = self._serving[name]
        self.membership.granted(name, lease_id)
        self._advance(generator)
        self._settle_idle(generator)
        generator.num_leases += 1
        generator.engine.submit(lease_id, prompt_tokens, lengths, delay_steps)
        self._changed[name] = generator

    def switch(self, version: int, stall_s: float) -> None:
        """Every generator goes over to `version`, standing still for `stall_s`."""
        self.version = version
        for generator in self._serving.values():
            self._advance(generator)
            self._settle_idle(generator)
            generator.engine.switch(version, stall_s)
            generator.paused_s += stall_s
            generator.free_since_s = self._clock.now_s + stall_s
        self._changed = dict(self._serving)
        self.schedule()

    def schedule(self) -> None:
        """Puts the next event of each generator that has changed on the clock."""
        for generator in self._changed.values():
            generator.scheduled += 1
            time_s = generator.engine.next_event_s()
            if time_s < math.inf:
                self._clock.at(time_s, partial(self._event, generator, generator.scheduled))
        self._changed = {}

    def totals(self) -> FleetTotals:
        """Up to now; of what is being sampled, up to each engine's last event."""
        now_s = self._clock.now_s
        for generator in self._serving.values():
            self._settle_idle(generator)
        everyone = [*self._serving.values(), *self._ended]
        return FleetTotals(
            num_tokens=sum(generator.num_tokens for generator in everyone),
            num_decode_steps=sum(generator.engine.progress for generator in everyone),
            idle_s=sum(generator.idle_s for generator in everyone),
            paused_s=sum(generator.paused_s for generator in everyone),
            elapsed_s=sum(generator.elapsed_s(now_s) for generator in everyone),
        )

    def _event(self, generator: _Generator, number: int) -> None:
        if generator.died_s is not None or number != generator.scheduled:
            return
        self._changed[generator.name] = generator
        if self._timings.reward_s > 0:
            self._advance(generator)
        else:  # the leases that follow are in hand before its next event is sought, not after
            for group in generator.engine.advance(self._clock.now_s):
                self._answer(generator, group)
        self.schedule()

    def _advance(self, generator: _Generator) -> None:
        for group in generator.engine.advance(self._clock.now_s):
            self._clock.after(self._timings.reward_s, partial(self._answer, generator, group))

    def _answer(self, generator: _Generator, group: SampledGroup) -> None:
        if generator.died_s is not None:
            return
        self.membership.answered(generator.name, group.lease_id)
        generator.num_leases -= 1
        generator.num_tokens += group.num_tokens
        generator.free_since_s = max(generator.free_since_s, self._clock.now_s)
        self._on_group(group)

    def _settle_idle(self, generator: _Generator) -> None:
        """Books the time without a lease up to now."""
        now_s = self._clock.now_s
        if generator.num_leases == 0 and generator.free_since_s < now_s:
            generator.idle_s += now_s - generator.free_since_s
            generator.free_since_s = now_s
