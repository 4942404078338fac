"""The split of a run's own devices that is expected to be the fastest, by a fit to the run; nothing else changes.

fit         the run's rates, as `asyncrl plan --from RUN` takes them
trust       the present split, simulated, has to come out as it was measured
bound       each other split by max(G · g/g′, L · l/l′), which no overlap can beat     the best few are kept
simulated   these few
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from asyncrl.config.schema import Config
from asyncrl.errors import UserError
from asyncrl.run.hardware import Hardware
from asyncrl.simulate.estimator import Inputs, accelerator_of, from_measured
from asyncrl.simulate.figures import Figures
from asyncrl.simulate.measured import MeasuredRun, read_run
from asyncrl.simulate.plan import reason_against, simulated

MIN_SPEEDUP = 1.1
MAX_MISS = 0.1
"""Of the present split's samples/s. A model that misses the run by as much as it would promise promises nothing."""
NUM_SIMULATED = 3
MIN_SIMULATED_STEPS = 30


@dataclass(frozen=True)
class BetterSplit:
    """Generators and learners, each with the devices that one of them has now."""

    now_generators: int
    now_learners: int
    num_generators: int
    num_learners: int
    speedup: float


def better_split(run_dir: Path, hardware: Hardware) -> BetterSplit | None:
    """None: no other split is expected to have `MIN_SPEEDUP` times the samples/s.

    Raises:
        UserError: the run cannot be read, or not be simulated well enough.
        RunError: a simulated run stands still.
    """
    accelerator = accelerator_of(hardware)
    if accelerator is None:
        raise UserError(f"{' and '.join(hardware.gpus) or 'this GPU'}: asyncrl has no single data sheet for it")
    return better_split_of(read_run(run_dir), accelerator)


def better_split_of(run: MeasuredRun, accelerator: str) -> BetterSplit | None:
    """As `better_split`, of a run that is read."""
    if not any(_others(run.config)):
        return None
    given = from_measured([run], run.config, accelerator)
    now = simulated(given, run.config, MIN_SIMULATED_STEPS)
    miss = now.samples_per_s / run.samples_per_s - 1
    if abs(miss) > MAX_MISS:
        raise UserError(
            f"simulated, the present split makes {now.samples_per_s:,.4g} samples/s, and {run.samples_per_s:,.4g} were "
            "measured: something that is not simulated decides this run's speed"
        )
    results = [
        (config, simulated(given, config, MIN_SIMULATED_STEPS).samples_per_s) for config in _promising(given, now)
    ]
    fastest, samples_per_s = max(results, key=lambda one: one[1], default=(run.config, 0.0))
    speedup = samples_per_s / now.samples_per_s
    if speedup <= MIN_SPEEDUP:
        return None
    before = run.config.generator.count, run.config.learner.count
    return BetterSplit(*before, fastest.generator.count, fastest.learner.count, speedup)


def _promising(given: Inputs, now: Figures) -> list[Config]:
    """Those splits that fit and could be faster by enough, as far as a bound can tell; the fastest bounds alone."""
    count = given.config.generator.count, given.config.learner.count
    bounds = [
        (
            max(now.generation_s * count[0] / other.generator.count, now.learning_s * count[1] / other.learner.count),
            other,
        )
        for other in _others(given.config)
        if reason_against(given.estimator, other) is None
    ]
    faster = [(bound_s, other) for bound_s, other in bounds if now.step_s > MIN_SPEEDUP * bound_s]
    return [other for _, other in sorted(faster, key=lambda one: one[0])[:NUM_SIMULATED]]


def _others(config: Config) -> Iterator[Config]:
    """Every other division of the same devices."""
    parts = config.generator.tensor_parallel
    num_devices = config.generator.count * parts + config.learner.count
    for num_generators in range(1, (num_devices - 1) // parts + 1):
        if num_generators != config.generator.count:
            yield replace(
                config,
                generator=replace(config.generator, count=num_generators),
                learner=replace(config.learner, count=num_devices - num_generators * parts),
            )
