"""A task of several turns through the real `asyncrl launch`, before and after training: by seed and by lag.

    .venv/bin/python bench/off_policy/multi_turn.py [--config FILE] [--steps 60] [--seeds 3] [--lags 2] [--kill]
        [--out FILE.jsonl] [key=value ...]

A run is one line of FILE.jsonl; runs that stand there already are not made again, so it can be stopped and continued.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.support.processes import role_pids

CALCULATOR = Path(__file__).parents[2] / "examples" / "calculator.yaml"
DEADLINE_S = 3600.0
"""Of one run."""


@dataclass(frozen=True)
class TurnRun:
    """One run."""

    config: str
    num_steps: int
    lag: int
    """replay.max_staleness."""
    seed: int
    killed: bool
    """generator-0 was killed after a third of the steps."""
    before: float
    """Accuracy on the held-out prompts."""
    after: float
    turns_before: float
    turns_after: float
    lag_mean: float
    """Of the trained tokens, over the run."""
    elapsed_s: float


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    console = Console(width=140)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    lines = options.out.read_text().splitlines() if options.out.is_file() else []
    known = [TurnRun(**json.loads(line)) for line in lines]
    wanted = [(lag, seed) for seed in range(options.seeds) for lag in options.lags]
    runs = []
    for lag, seed in wanted:
        found = [run for run in known if _key(run) == (options.config.name, options.steps, lag, seed, options.kill)]
        if not found:
            found = [_launch(options, lag, seed)]
            with options.out.open("a") as file:
                file.write(json.dumps(asdict(found[0])) + "\n")
        runs += found[:1]
        console.print(f"lag {lag}, seed {seed}: {found[0].before:.1%} → {found[0].after:.1%}", highlight=False)
    console.print(table(runs))
    return 0


def _key(run: TurnRun) -> tuple[str, int, int, int, bool]:
    return run.config, run.num_steps, run.lag, run.seed, run.killed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="A task of several turns, before and after.")
    parser.add_argument("--config", type=Path, default=CALCULATOR)
    parser.add_argument("--steps", type=int, default=60, help="of each run (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (default: %(default)s)")
    parser.add_argument("--lags", type=int, nargs="+", default=[2], help="replay.max_staleness (default: 2)")
    parser.add_argument("--kill", action="store_true", help="kill the generator after a third of the steps")
    parser.add_argument("--out", type=Path, default=Path("runs/multi_turn.jsonl"))
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    return parser


def _launch(options: argparse.Namespace, lag: int, seed: int) -> TurnRun:
    """Raises RuntimeError: the run failed; says its last lines."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir, output = Path(folder) / "run", Path(folder) / "output.txt"
        overrides = [
            *(f"run.steps={options.steps}", f"run.eval_every={options.steps}", f"run.seed={seed}"),
            *(f"replay.max_staleness={lag}", "run.trackers=[]", *options.overrides),
        ]
        command = [sys.executable, "-m", "asyncrl", "launch", "--config", str(options.config), "--run-dir"]
        started = time.monotonic()
        with output.open("w") as stream:
            process = subprocess.Popen([*command, str(run_dir), *overrides], stdout=stream, stderr=stream)
        try:
            if options.kill:
                _kill_generator(process, run_dir, options.steps // 3)
            code = process.wait(DEADLINE_S)
        finally:
            process.terminate()
            process.wait()
        if code != 0:
            raise RuntimeError(f"the run ended with {code}:\n{output.read_text()[-2000:]}")
        rows = list(_rows(run_dir))
        evaluations = [row for row in rows if "eval/accuracy" in row]
        steps = [row for row in rows if "staleness/mean" in row]
        return TurnRun(
            config=options.config.name,
            num_steps=options.steps,
            lag=lag,
            seed=seed,
            killed=options.kill,
            before=evaluations[0]["eval/accuracy"],
            after=evaluations[-1]["eval/accuracy"],
            turns_before=steps[0]["environment/turns_mean"],
            turns_after=steps[-1]["environment/turns_mean"],
            lag_mean=statistics.mean(row["staleness/mean"] for row in steps),
            elapsed_s=time.monotonic() - started,
        )


def _kill_generator(process: subprocess.Popen[bytes], run_dir: Path, step: int) -> None:
    while process.poll() is None and not any(row["step"] >= step for row in _rows(run_dir)):
        time.sleep(0.2)
    if process.poll() is None:
        os.kill(role_pids(run_dir)["generator-0"], signal.SIGKILL)


def _rows(run_dir: Path) -> Iterator[dict[str, Any]]:
    file = run_dir / "metrics.jsonl"
    for line in file.read_text().splitlines(keepends=True) if file.is_file() else []:
        if line.endswith("\n"):  # else it is being written
            yield json.loads(line)


def table(runs: list[TurnRun]) -> Table:
    """A row a lag: means over the seeds (least – most)."""
    result = Table("lag", "mean lag", "before", "after", "÷ the first lag", "turns", "minutes a run")
    first = {run.seed: run.after for run in runs if run.lag == runs[0].lag}
    for lag in dict.fromkeys(run.lag for run in runs):
        mine = [run for run in runs if run.lag == lag]
        ratios = [run.after / first[run.seed] for run in mine if first.get(run.seed)]
        turns = [
            statistics.mean(values) for values in zip(*((r.turns_before, r.turns_after) for r in mine), strict=True)
        ]
        result.add_row(
            f"{lag}",
            f"{statistics.mean(run.lag_mean for run in mine):.1f}",
            _spread([run.before for run in mine], "{:.1%}"),
            _spread([run.after for run in mine], "{:.1%}"),
            _spread(ratios, "{:.3f}") if ratios else "–",
            f"{turns[0]:.2f} → {turns[1]:.2f}",
            _spread([run.elapsed_s / 60 for run in mine], "{:.1f}"),
        )
    return result


def _spread(values: list[float], form: str) -> str:
    mean, least, most = (form.format(value) for value in (statistics.mean(values), min(values), max(values)))
    return f"{mean} ({least} – {most})"


if __name__ == "__main__":
    sys.exit(main())
