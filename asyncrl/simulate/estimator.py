"""How long things would take: by a data sheet, or by runs that were measured and the data sheet's proportions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from asyncrl.cluster.topology import Node, Topology, nodes_that_fit, plan
from asyncrl.config.checks.check import check
from asyncrl.config.checks.devices import Device
from asyncrl.config.load import load
from asyncrl.config.model_shape import ModelShape, read_model_shape
from asyncrl.config.schema import Config
from asyncrl.errors import ConfigError, UserError
from asyncrl.run.hardware import Hardware, read_hardware
from asyncrl.simulate.accelerators import ACCELERATORS, TINY_SHAPE, Accelerator, roofline
from asyncrl.simulate.fit import fit, rescaled
from asyncrl.simulate.measured import MeasuredRun, read_run
from asyncrl.simulate.not_simulated import not_simulated
from asyncrl.simulate.timings import Timings, Workload

DEFAULT_GPU = "h100"
LENGTH_SIGMA = 0.8
"""Of completions where nothing was measured: p99 is 6.4 times the median."""
MEDIAN_SHARE = 0.25
"""Their median, of generator.max_tokens."""


@dataclass(frozen=True)
class Calibration:
    """Timings that were fitted to runs, beside what the roofline says of the same configuration."""

    config: Config
    """Of the first run."""
    fitted: Timings
    roofline: Timings


@dataclass(frozen=True)
class Estimator:
    """Timings of any configuration of one model on one kind of hardware."""

    accelerator: Accelerator
    device: Device
    shape: ModelShape
    calibration: Calibration | None = None

    def topology(self, config: Config) -> Topology:
        """On the smallest cluster of 8-GPU nodes, or on a machine with a CPU for each process."""
        if self.device == "gpu":
            return plan(config, nodes_that_fit(config), "gpu")
        num_processes = 1 + config.generator.count * config.generator.tensor_parallel + config.learner.count
        return plan(config, [Node(num_processes, 0)], "cpu")

    def timings(self, config: Config, workload: Workload) -> Timings:
        """Of a checked configuration."""
        by_roofline = roofline(config, self.shape, self.topology(config), self.accelerator, workload)
        if self.calibration is None:
            return by_roofline
        return rescaled(self.calibration.fitted, self.calibration.roofline, by_roofline)


@dataclass(frozen=True)
class Inputs:
    """What `simulate` and `plan` start from."""

    config: Config
    estimator: Estimator
    workload: Workload

    def not_simulated(self) -> list[str]:
        """Keys whose cost is in no figure, `not_simulated.py`."""
        calibration = self.estimator.calibration
        measured = None if calibration is None else calibration.config
        timings = self.estimator.timings(self.config, self.workload)
        return not_simulated(self.config, measured, timings, self.workload)


def from_config(config_file: Path, overrides: list[str], accelerator: str | None) -> Inputs:
    """By the data sheet alone.

    Raises:
        ConfigError: the configuration or the accelerator's name.
        DataError: the model's shape cannot be read.
    """
    config = load(config_file, overrides)
    estimator = _estimator(config, accelerator)
    workload = Workload(
        prompt_tokens=max(1, config.data.max_prompt_tokens // 2),
        length_median=max(1.0, MEDIAN_SHARE * config.generator.max_tokens),
        length_sigma=LENGTH_SIGMA,
        max_tokens=config.generator.max_tokens,
        num_eval_prompts=config.run.eval_prompts or 0,
    )
    return Inputs(config, estimator, workload)


def from_runs(run_dirs: Sequence[Path], overrides: list[str], accelerator: str | None) -> Inputs:
    """By runs of the same hardware and model; configuration and workload are those of the first, then the overrides.

    Raises:
        ConfigError: an override or the accelerator's name.
        DataError: a run cannot be read.
        UserError: the runs differ in what one fit cannot tell apart.
    """
    runs = [read_run(run_dir) for run_dir in run_dirs]
    require_alike(runs)
    hardware = read_hardware(run_dirs[0])
    known = None if hardware is None else accelerator_of(hardware) or DEFAULT_GPU
    given = from_measured(runs, load(run_dirs[0] / "config.yaml", overrides), accelerator or known)
    check(given.config, given.estimator.device)
    if given.config.generator.max_tokens != runs[0].config.generator.max_tokens:
        raise UserError("generator.max_tokens decides the lengths that --from has measured; take a run that has it so")
    return given


def from_measured(runs: Sequence[MeasuredRun], config: Config, accelerator: str | None) -> Inputs:
    """By a fit to runs that are read; `config` is to be simulated.

    Raises:
        ConfigError: the accelerator's name.
        DataError: the model's shape cannot be read.
    """
    by_data_sheet = _estimator(runs[0].config, accelerator)
    rooflines = [by_data_sheet.timings(run.config, run.workload) for run in runs]
    calibration = Calibration(runs[0].config, fit(runs, rooflines), rooflines[0])
    return Inputs(config, replace(by_data_sheet, calibration=calibration), runs[0].workload)


def accelerator_of(hardware: Hardware) -> str | None:
    """Its name among the data sheets; None: a GPU that has none there, or GPUs of several kinds."""
    if hardware.device == "cpu":
        return "cpu"
    kinds = [kind.lower().replace("-", "").replace(" ", "") for kind in hardware.gpus]
    names = [name for name in ACCELERATORS if all(name in kind for kind in kinds)]
    return names[0] if kinds and names else None


def require_alike(runs: Sequence[MeasuredRun]) -> None:
    """Of the model the shape counts, not the folder: each run can have made a tiny model of its own.

    Raises:
        DataError: a model's shape cannot be read.
        UserError: the runs differ in what one fit cannot tell apart.
    """
    alike: dict[str, Callable[[Config], object]] = {
        "model.path": _shape,
        "generator.tensor_parallel": lambda config: config.generator.tensor_parallel,
        "learner.count": lambda config: config.learner.count,
    }
    for key, value_of in alike.items():
        first, *others = (value_of(run.config) for run in runs)
        if any(other != first for other in others):
            section, name = key.split(".")
            values = sorted({str(getattr(getattr(run.config, section), name)) for run in runs})
            raise UserError(f"--from: the runs differ in {key} ({', '.join(values)}); take runs alike in it")


def _estimator(config: Config, accelerator: str | None) -> Estimator:
    name = accelerator or (DEFAULT_GPU if config.cluster.device == "gpu" else "cpu")
    if name not in ACCELERATORS:
        raise ConfigError(f"--accelerator {name}: known are {', '.join(ACCELERATORS)}")
    device: Device = "cpu" if name == "cpu" else "gpu"
    if config.cluster.device not in ("auto", device):
        raise ConfigError(f"--accelerator {name} beside cluster.device={config.cluster.device}; change one of them")
    shape = _shape(config)
    check(config, device, None if config.model.path == "tiny" else shape)
    return Estimator(ACCELERATORS[name], device, shape)


def _shape(config: Config) -> ModelShape:
    if config.model.path == "tiny":
        return TINY_SHAPE
    return read_model_shape(config.model.path, config.model.trust_remote_code)
