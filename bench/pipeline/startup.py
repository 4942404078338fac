"""From the command to the first step: the quickstart's phases in seconds, and the CPU seconds of each process.

    .venv/bin/python bench/pipeline/startup.py [--repeats 5] [--against CHECKOUT] [--out FILE.jsonl] [key=value ...]

A launch before them makes the tiny model and is not counted. `--against` launches another checkout of asyncrl in turn,
with this one's Python.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from bench.support.processes import cpu_s, role_pids, tree
from bench.support.rows import Measurement, write_rows

ROOT = Path(__file__).parents[2]

PHASES = {
    "inputs": r"run directory: ",
    "Ray": r"replay: ",
    "vLLM": r"generator-0: warming up vLLM",
    "warm-up": r"generator-0: waiting for weights",
    "first step": r"step +1/",
}
"""Phase → the line of the launcher's output that ends it."""


def launch(checkout: Path, folder: Path, overrides: list[str]) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of each phase, and CPU seconds of each process until the first step; the run ends there."""
    with tempfile.TemporaryDirectory(prefix="startup-", dir=folder) as runs:
        run_dir = Path(runs) / "run"
        settings = [f"run.dir={folder}", "run.eval_every=0", *overrides]
        environment = {**os.environ, "PYTHONPATH": str(checkout), "PYTHONUNBUFFERED": "1"}
        begun_s = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "asyncrl", "launch", "--run-dir", str(run_dir), *settings],
            cwd=checkout,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        ends_s, output = [begun_s], ""
        patterns = list(PHASES.values())
        try:
            for line in process.stdout:
                output += line
                if re.match(patterns[len(ends_s) - 1], line):
                    ends_s.append(time.perf_counter())
                if len(ends_s) > len(patterns):
                    break
            else:
                raise SystemExit(f"the launch ended before its first step:\n{output}")
            cpu = _cpu_by_process(process.pid, run_dir)
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate()
    seconds = [end_s - start_s for start_s, end_s in pairwise(ends_s)]
    return {**dict(zip(PHASES, seconds, strict=True)), "together": ends_s[-1] - begun_s}, cpu


def _cpu_by_process(launcher: int, run_dir: Path) -> dict[str, float]:
    found = {"launcher": cpu_s(iter([launcher]))}
    for role, pid in role_pids(run_dir).items():
        found[role] = cpu_s(tree(pid))
    everything = cpu_s(tree(launcher))
    found["Ray"] = everything - sum(found.values())
    found["together"] = everything
    return found


def table(title: str, rows: dict[str, list[dict[str, float]]]) -> str:
    names = list(next(iter(rows.values()))[0])
    lines = [f"| {title} | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for label, figures in rows.items():
        cells = []
        for name in names:
            values = [figure[name] for figure in figures]
            cells.append(f"{statistics.median(values):.2f} ({min(values):.2f} – {max(values):.2f})")
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def rows(prefix: str, unit: str, figures: dict[str, list[dict[str, float]]]) -> list[Measurement]:
    """Of this checkout, and how it stands to the other."""
    ours, *others = figures.values()
    measured = [
        Measurement(f"{prefix}{name.replace(' ', '_')}_{unit}", [one[name] for one in ours], "less") for name in ours[0]
    ]
    for theirs in others:
        ratios = [mine["together"] / other["together"] for mine, other in zip(ours, theirs, strict=True)]
        measured.append(Measurement(f"{prefix}together_over_other", ratios, "less"))
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="launches of each checkout (default: %(default)s)")
    parser.add_argument("--against", type=Path, help="another checkout of asyncrl")
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="for the runs' files (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE.jsonl", help="writes each figure as a row")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="any key of the configuration")
    arguments = parser.parse_args()
    arguments.folder.mkdir(exist_ok=True)
    checkouts = {"this checkout": ROOT}
    if arguments.against is not None:
        checkouts["the other"] = arguments.against.resolve()
    seconds: dict[str, list[dict[str, float]]] = {label: [] for label in checkouts}
    cpu: dict[str, list[dict[str, float]]] = {label: [] for label in checkouts}
    for repeat in range(-1, arguments.repeats):
        for label, checkout in checkouts.items():
            phases, by_process = launch(checkout, arguments.folder.resolve(), arguments.overrides)
            if repeat >= 0:
                seconds[label].append(phases)
                cpu[label].append(by_process)
                print(f"{label}: {phases['together']:.1f} s, {by_process['together']:.1f} s of CPU", flush=True)
    print(f"\nMedian (least – most) of {arguments.repeats}:\n")
    print(table("seconds", seconds), end="\n\n")
    print(table("CPU seconds", cpu))
    if arguments.out is not None:
        write_rows(arguments.out, "startup", [*rows("", "s", seconds), *rows("cpu_", "s", cpu)])


if __name__ == "__main__":
    main()
