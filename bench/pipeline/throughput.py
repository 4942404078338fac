"""The same split run asynchronously and at η = 0, through the real `asyncrl launch`: throughput and overlap.

    .venv/bin/python bench/pipeline/throughput.py [--config FILE] [--steps 60] [--out FILE.jsonl] [key=value ...]

Definitions in overlap.py; how to read the table, and what two cores can and cannot show, in README.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

from asyncrl.cluster.machine import this_node
from asyncrl.cluster.topology import resolve_device
from asyncrl.config.load import load
from asyncrl.config.schema import Config
from asyncrl.errors import ConfigError, RunError, UserError
from asyncrl.run.metrics import read_rows
from bench.pipeline.overlap import RunFigures, run_figures
from bench.support.processes import cpu_s, machine_cpu_s, pin, tree
from bench.support.rows import Better, Measurement, write_rows

Mode = Literal["async", "sync"]
QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
POLL_S = 0.5
NUM_LAST_LINES = 30
COMPARED: dict[str, Better] = {
    "samples_per_s": "more",
    "step_s": "less",
    "generation_s": "less",
    "learning_s": "less",
    "overlap_efficiency": "more",
    "control_s": "less",
}


@dataclass(frozen=True)
class Settings:
    """What is run, for both modes alike."""

    config_file: Path
    overrides: list[str]
    num_steps: int
    """Measured."""
    num_warmup_steps: int
    pin: bool
    num_generators: int


@dataclass(frozen=True)
class ModeResult:
    """One run."""

    figures: RunFigures
    foreign_cores: float
    """Cores that processes outside the run kept busy meanwhile: the machine's, not asyncrl's, share in the figures."""
    core_of_role: dict[str, int]
    """Empty = not pinned."""


@dataclass(frozen=True)
class _Sample:
    """Seen from outside while a run goes on."""

    time_s: float
    num_rows: int
    foreign_cpu_s: float


def main() -> int:
    arguments = _parser().parse_args()
    console = Console()
    try:
        settings = _settings(arguments)
        repeats = [_repeat(settings, number, console) for number in range(arguments.repeats)]
    except (UserError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    console.print(table(repeats))
    if arguments.out is not None:
        write_rows(arguments.out, "throughput", measurements(repeats))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Throughput of one split, asynchronous against synchronous.")
    parser.add_argument("--config", type=Path, default=QUICKSTART)
    parser.add_argument("--steps", type=int, default=60, help="measured steps of each run (default: %(default)s)")
    parser.add_argument("--warmup-steps", type=int, default=10, help="steps before them (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=1, help="of both runs (default: %(default)s)")
    parser.add_argument(
        "--pin",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="on CPU: each generator and learner on a core of its own, in turn (default: yes)",
    )
    parser.add_argument("--out", type=Path, metavar="FILE.jsonl", help="writes each figure as a row")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="any key of the configuration, for both runs")
    return parser


def _settings(arguments: argparse.Namespace) -> Settings:
    for name in ("steps", "warmup_steps", "repeats"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1")
    config: Config = load(arguments.config, arguments.overrides)
    if config.replay.max_staleness < 1:
        raise ConfigError("replay.max_staleness=0 is the synchronous run; give the asynchronous one's, at least 1")
    return Settings(
        arguments.config,
        arguments.overrides,
        arguments.steps,
        arguments.warmup_steps,
        pin=arguments.pin and resolve_device(config, [this_node()]) == "cpu",
        num_generators=config.generator.count,
    )


def _repeat(settings: Settings, number: int, console: Console) -> dict[Mode, ModeResult]:
    """Both runs; which goes first changes with each repeat, so that a drift of the machine favours neither."""
    modes: list[Mode] = ["async", "sync"] if number % 2 == 0 else ["sync", "async"]
    results: dict[Mode, ModeResult] = {}
    for mode in modes:
        with tempfile.TemporaryDirectory(prefix="asyncrl-bench-") as folder:
            console.print(f"repeat {number + 1}: the {mode} run")
            results[mode] = run_once(settings, mode, Path(folder))
    return results


def run_once(settings: Settings, mode: Mode, folder: Path) -> ModeResult:
    """One launch, watched.

    Raises:
        RunError: it failed; with its last lines.
    """
    run_dir, output = folder / mode, folder / "output.txt"
    num_steps = settings.num_warmup_steps + settings.num_steps
    command = [sys.executable, "-m", "asyncrl", "launch", "--config", str(settings.config_file)]
    command += ["--run-dir", str(run_dir), *settings.overrides, f"run.steps={num_steps}", "run.eval_every=0"]
    if mode == "sync":
        command.append("replay.max_staleness=0")
    with output.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        try:
            samples, core_of_role = _watch(process, run_dir, settings)
        finally:
            process.terminate()  # nothing to do, unless we were interrupted
    if process.returncode:
        last_lines = "\n".join(output.read_text().splitlines()[-NUM_LAST_LINES:])
        raise RunError(f"the {mode} run ended with exit code {process.returncode}:\n{last_lines}")
    rows = read_rows(run_dir)
    figures = run_figures(rows, settings.num_warmup_steps, settings.num_generators)
    return ModeResult(figures, _foreign_cores(samples, settings.num_warmup_steps), core_of_role)


def _watch(process: subprocess.Popen[bytes], run_dir: Path, settings: Settings) -> tuple[list[_Sample], dict[str, int]]:
    """Until the run has ended; pins whatever processes it has meanwhile started."""
    samples: list[_Sample] = []
    core_of_role: dict[str, int] = {}
    metrics_file = run_dir / "metrics.jsonl"
    cores = sorted(os.sched_getaffinity(0))
    while process.poll() is None:
        if settings.pin:
            core_of_role = pin(run_dir, cores) or core_of_role
        num_rows = metrics_file.read_bytes().count(b"\n") if metrics_file.is_file() else 0
        samples.append(_Sample(time.monotonic(), num_rows, machine_cpu_s() - cpu_s(tree(process.pid))))
        time.sleep(POLL_S)
    return samples, core_of_role


def _foreign_cores(samples: list[_Sample], num_warmup_steps: int) -> float:
    """Mean over the measured steps, as far as the samples tell."""
    last = max(sample.num_rows for sample in samples)
    measured = [sample for sample in samples if num_warmup_steps <= sample.num_rows < last]
    if len(measured) < 2:
        return 0.0
    first, final = measured[0], measured[-1]
    return (final.foreign_cpu_s - first.foreign_cpu_s) / (final.time_s - first.time_s)


def async_to_sync(repeat: dict[Mode, ModeResult]) -> float:
    """Ratio of samples per second."""
    return repeat["async"].figures.samples_per_s / repeat["sync"].figures.samples_per_s


def table(repeats: list[dict[Mode, ModeResult]]) -> Table:
    """A row a figure, a column a mode; of several repeats the median with the least and the most."""
    result = Table("figure", title="steps after the warm-up", title_justify="left")
    runs: dict[Mode, list[ModeResult]] = {"async": [], "sync": []}
    for mode, results in runs.items():
        result.add_column(mode, justify="right")
        results += [repeat[mode] for repeat in repeats]
    for item in fields(RunFigures):
        cells = ([getattr(run.figures, item.name) for run in results] for results in runs.values())
        result.add_row(item.name, *map(_cell, cells))
    cells = ([run.foreign_cores for run in results] for results in runs.values())
    result.add_row("foreign_cores", *map(_cell, cells), end_section=True)
    result.add_row("async : sync, samples/s", _cell([async_to_sync(repeat) for repeat in repeats]))
    return result


def _cell(values: list[float]) -> str:
    middle = f"{statistics.median(values):,.4g}"
    return middle if len(values) == 1 else f"{middle} ({min(values):,.4g} – {max(values):,.4g})"


def measurements(repeats: list[dict[Mode, ModeResult]]) -> list[Measurement]:
    """The figures that a change of the code can make better or worse, of each mode and of both together."""
    rows = [
        Measurement(f"{mode}: {figure}", [getattr(repeat[mode].figures, figure) for repeat in repeats], better)
        for mode in ("async", "sync")
        for figure, better in COMPARED.items()
    ]
    return [*rows, Measurement("async_to_sync", [async_to_sync(repeat) for repeat in repeats], "more")]


if __name__ == "__main__":
    sys.exit(main())
