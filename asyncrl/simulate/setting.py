"""One simulated run: a configuration, the hardware's timings, the workload, and what goes wrong when."""

from __future__ import annotations

from dataclasses import dataclass, field

from asyncrl.config.schema import Config
from asyncrl.simulate.timings import Timings, Workload


@dataclass(frozen=True)
class Death:
    """A generator's process ends and comes back; its number is that of the death modulo the generators."""

    at_s: float
    back_after_s: float


@dataclass(frozen=True)
class Setting:
    """Everything that decides a simulation's outcome. `config` is checked."""

    config: Config
    timings: Timings
    """For the generators' tensor parallelism and the number of learner ranks in `config`."""
    workload: Workload
    num_steps: int
    deaths: list[Death] = field(default_factory=list)
    seed: int = 0
    """Of lengths and rewards."""
