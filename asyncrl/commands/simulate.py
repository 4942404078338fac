"""What `asyncrl simulate` and `asyncrl plan` are given → a simulation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from asyncrl.errors import UserError
from asyncrl.simulate.estimator import Inputs, from_config, from_runs
from asyncrl.simulate.figures import Figures, figures
from asyncrl.simulate.plan import make_plan
from asyncrl.simulate.records import SimulatedRun
from asyncrl.simulate.setting import Death, Setting
from asyncrl.simulate.show_plan import print_plan
from asyncrl.simulate.simulation import simulate

PLANNED_STEPS = 30
"""Of each simulation of a plan, at least."""
MIN_STEPS = 10
"""Half of them are warm-up."""


def inputs(
    runs: Sequence[Path], named_config: Path | None, config_file: Path, overrides: list[str], accelerator: str | None
) -> Inputs:
    """From runs, when there are any, else from a configuration.

    Args:
        named_config: as the user gave it; runs bring their own.
        config_file: the same, or the default.

    Raises:
        UserError: both were given, or what `estimator.py` refuses.
    """
    if not runs:
        return from_config(config_file, overrides, accelerator)
    if named_config is not None:
        raise UserError("--from takes the run's own configuration; leave --config out")
    return from_runs(runs, overrides, accelerator)


def planned(config_file: Path, overrides: list[str], num_accelerators: int) -> list[str]:
    """The overrides, with those of the plan for so many accelerators; prints the plan.

    Raises:
        UserError: an override decides what the plan is to decide, or nothing fits.
    """
    given = from_config(config_file, overrides, None)
    plan = make_plan(given, num_accelerators, PLANNED_STEPS, None)
    keys = {override.partition("=")[0] for override in plan.chosen.overrides}
    decided = sorted(keys & {override.partition("=")[0] for override in overrides})
    if decided:
        raise UserError(f"--plan chooses {', '.join(decided)}; leave {'it' if len(decided) == 1 else 'them'} out")
    print_plan(plan, given.not_simulated(), Console())
    return [*overrides, *plan.chosen.overrides]


def death(text: str) -> Death:
    """`AT:FOR`, both in seconds.

    Raises:
        UserError: it is not of this form.
    """
    at, _, back_after = text.partition(":")
    try:
        parsed = Death(float(at), float(back_after))
    except ValueError as error:
        raise UserError(f"--death {text}: give AT:FOR in seconds, such as 600:90") from error
    if not (parsed.at_s >= 0 and parsed.back_after_s > 0):
        raise UserError(f"--death {text}: AT must be at least 0 and FOR above 0")
    return parsed


def require(num_steps: int, dollars_per_hour: float | None) -> None:
    """
    Raises:
        UserError: too few steps for a figure, or a price that is none.
    """
    if num_steps < MIN_STEPS:
        raise UserError(f"--steps {num_steps}: at least {MIN_STEPS}, as the first of them fill the queue")
    if dollars_per_hour is not None and not dollars_per_hour > 0:
        raise UserError(f"--price {dollars_per_hour:g}: give dollars an hour, above 0")


def simulate_once(
    given: Inputs, num_steps: int, deaths: list[Death], dollars_per_hour: float | None
) -> tuple[SimulatedRun, Figures]:
    """
    Raises:
        UserError: as `require`.
    """
    require(num_steps, dollars_per_hour)
    timings = given.estimator.timings(given.config, given.workload)
    run = simulate(Setting(given.config, timings, given.workload, num_steps, deaths))
    return run, figures(run, dollars_per_hour)
