"""Would another split of a run's devices be faster? A sentence for `asyncrl report` and a live run's console.

First comes what forbids an answer, which a file or two tell; only then the fit and its simulations (`better_split.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from asyncrl.config.engines import engine_names
from asyncrl.config.load import load
from asyncrl.config.schema import Config
from asyncrl.errors import RunError, UserError
from asyncrl.run.hardware import FILE_NAME, Hardware, read_hardware
from asyncrl.run.metrics import read_rows
from asyncrl.simulate.measured import serving_generators, stretches

MIN_STEPS = 20
"""Since the run's processes changed last."""


@dataclass(frozen=True)
class SplitAdvice:
    """Nothing in it: no other split is expected to be much faster."""

    better: str | None = None
    """A sentence."""
    overrides: list[str] = field(default_factory=list)
    """With which a run has that split."""
    speedup: float | None = None
    """Its samples/s ÷ those of the present split, both simulated."""
    why_none: str | None = None
    """What keeps us from an answer."""

    @property
    def note(self) -> str | None:
        """A line for people, where there is something to say."""
        return self.better if self.why_none is None else f"no advice on the split: {self.why_none}"


def advise(run_dir: Path) -> SplitAdvice:
    """Reads a run, live or ended, and changes nothing. Takes seconds of a core when there is something to simulate."""
    try:
        hardware = read_hardware(run_dir)
        if hardware is None:
            return SplitAdvice(why_none=f"the run has no {FILE_NAME}, which its launcher writes")
        reason = _why_none(run_dir, hardware)
        if reason is not None:
            return SplitAdvice(why_none=reason)

        from asyncrl.simulate.better_split import better_split  # takes torch, and so a second or two

        better = better_split(run_dir, hardware)
    except (UserError, RunError) as error:
        return SplitAdvice(why_none=str(error))
    if better is None:
        return SplitAdvice()
    overrides = [f"generator.count={better.num_generators}", f"learner.count={better.num_learners}"]
    sentence = (
        f"another split of the same devices should be {better.speedup - 1:.0%} faster: {' '.join(overrides)} instead "
        f"of {better.now_generators} and {better.now_learners}, simulated with this run's own rates"
    )
    return SplitAdvice(sentence, overrides, better.speedup)


def shares_cores(config: Config, hardware: Hardware) -> bool:
    """On CPU, with fewer cores than processes: how fast one side is then depends on what the other one does."""
    return hardware.device == "cpu" and hardware.num_cpus < num_processes(config)


def num_processes(config: Config) -> int:
    """Replay, each worker of a generator, each learner rank."""
    return 1 + config.generator.count * config.generator.tensor_parallel + config.learner.count


def can_be_advised(config: Config, hardware: Hardware) -> bool:
    """Whether a run may ever get an answer, with as few generators as `asyncrl scale` can leave it."""
    return _why_never(replace(config, generator=replace(config.generator, count=1)), hardware) is None


def _why_none(run_dir: Path, hardware: Hardware) -> str | None:
    config = load(run_dir / "config.yaml")
    rows = stretches(read_rows(run_dir))[-1]
    count = serving_generators(rows, config)
    reason = _why_never(replace(config, generator=replace(config.generator, count=count)), hardware)
    if reason is None and len(rows) < MIN_STEPS:
        return f"{len(rows)} steps since the run's processes changed last; {MIN_STEPS} are needed"
    return reason


def _why_never(config: Config, hardware: Hardware) -> str | None:
    """However many steps there are."""
    if config.cluster.share_gpu:
        return "with cluster.share_gpu=true there is one GPU, which cannot be divided"
    if shares_cores(config, hardware):
        return (
            f"{num_processes(config)} processes share {hardware.num_cpus:g} cores (cluster.device=cpu), so the "
            "speed of one side depends on the other"
        )
    if len(set(engine_names(config.generator))) > 1:
        return f"generator.engine={config.generator.engine}: the generators differ in speed"
    return None
