"""Does `--from RUN` predict runs with real engines that it has not seen? Launched, and simulated from two other runs.

    .venv/bin/python -m bench prediction [--steps 50] [--only NAME ...] [--out FILE.jsonl]

Two runs are fitted to, with many and with few groups in flight. Each other setting is launched through `asyncrl
launch`, pinned as `pipeline/throughput.py` does, and simulated by what `asyncrl simulate --from` does. Steps count
after the warm-up. The model is untrained and stays so: lengths are geometric, cut at 10 tokens.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from asyncrl.simulate.estimator import from_runs
from asyncrl.simulate.plan import simulated
from bench.pipeline.throughput import QUICKSTART, Settings, run_once
from bench.planning.emulation import HEADER, Figure, compared, line
from bench.support.rows import Measurement, write_rows

WARMUP_STEPS = 10
BASE = ["model.warmup_steps=0", "generator.max_tokens=10", "learner.lr=1e-6", "learner.micro_batch_tokens=1024"]
FITTED = {"fitted: η = 2": [], "fitted: 4 groups in flight": ["generator.max_groups_in_flight=4"]}
UNSEEN = {
    "η = 0": ["replay.max_staleness=0"],
    "η = 1": ["replay.max_staleness=1"],
    "η = 4": ["replay.max_staleness=4"],
    "8 groups in flight": ["generator.max_groups_in_flight=8"],
    "2 groups in flight": ["generator.max_groups_in_flight=2"],
    "B = 16": ["learner.batch_size=16"],
    "G = 32, B = 16": ["algorithm.group_size=32", "learner.batch_size=16"],
    "published every 2": ["publish.every=2"],
    "two epochs a batch": ["learner.epochs_per_batch=2"],
    "stragglers masked, η = 1": ["replay.stragglers=mask", "replay.max_staleness=1"],
}


def measure(name: str, overrides: list[str], num_steps: int, folder: Path) -> tuple[Path, Figure]:
    """The folder of the run, and its figures after the warm-up. Runs in one folder share the tiny model."""
    settings = Settings(QUICKSTART, [*BASE, *overrides], num_steps, WARMUP_STEPS, pin=True, num_generators=1)
    figures = run_once(settings, "async", folder).figures
    run = (folder / "async").rename(folder / name.replace(" ", "_").replace("=", ""))
    return run, Figure(figures.samples_per_s, figures.staleness_mean, figures.learner_idle)


def predict(fitted_to: list[Path], overrides: list[str], num_steps: int) -> Figure:
    """What `asyncrl simulate --from` says of the setting."""
    given = from_runs(fitted_to, overrides, None)
    result = simulated(given, given.config, num_steps)
    return Figure(result.samples_per_s, result.staleness_mean, result.learner_idle)


def main() -> int:
    parser = argparse.ArgumentParser(description="Does --from predict runs with real engines?")
    parser.add_argument("--steps", type=int, default=50, help="measured steps of each run (default: %(default)s)")
    parser.add_argument("--only", nargs="+", metavar="NAME", default=list(UNSEEN), help="settings, by name")
    parser.add_argument("--out", type=Path, metavar="FILE.jsonl", help="writes each figure as a row")
    arguments = parser.parse_args()
    rows: list[Measurement] = []
    print(HEADER)
    with tempfile.TemporaryDirectory(prefix="asyncrl-bench-") as name_of_folder:
        folder = Path(name_of_folder)
        fits = {name: measure(name, keys, arguments.steps, folder) for name, keys in FITTED.items()}
        runs = [run for run, _ in fits.values()]
        for name, (_, figure) in fits.items():
            print(line(name, figure, predict(runs, FITTED[name], arguments.steps)), flush=True)
        for name in arguments.only:
            _, measured = measure(name, UNSEEN[name], arguments.steps, folder)
            simulation = predict(runs, UNSEEN[name], arguments.steps)
            rows += compared(name, measured, simulation)
            print(line(name, measured, simulation), flush=True)
    if arguments.out is not None:
        write_rows(arguments.out, "prediction", rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
