"""asyncrl beside TRL's GRPOTrainer: samples a second, seconds to 90 % accuracy, CPU seconds, memory; alternating.

    python -m venv trl && trl/bin/pip install trl==1.16.0        (its own environment; on a CPU, a CPU torch first)
    .venv/bin/python -m bench beside_trl --python trl/bin/python [--repeats 3] [--lengths short long] [--out FILE.jsonl]
                                         [--plot FILE.svg]

Both have the two cores to themselves in turn, and the same model, prompts, group, batch, lengths and learning rate.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal, NamedTuple

from asyncrl.commands.inputs import make_inputs
from asyncrl.config.load import load
from asyncrl.data.arithmetic import arithmetic_rows
from asyncrl.run.metrics import read_rows
from bench.pipeline.throughput import QUICKSTART
from bench.support.processes import GONE, cpu_s, role_pids, tree
from bench.support.rows import Measurement, write_rows

LENGTHS: dict[str, list[str]] = {
    "short": [],  # the quickstart: 2 – 4 tokens
    "long": ["model.warmup_steps=0", "generator.max_tokens=56", "learner.lr=1e-6"],  # geometric, mean 17, cut at 56
}
GOAL = 0.9
WARMUP_STEPS = 15
EVAL_EVERY = 10
POLL_S = 0.5


Run = Literal["asyncrl", "trl"]


class Point(NamedTuple):
    """An evaluation."""

    time_s: float
    """From the command to when its figure was there."""
    accuracy: float


@dataclass(frozen=True)
class Outcome:
    """One training run."""

    samples_per_s: float
    """Of a step of median length; TRL's evaluations are not in it, asyncrl's go on beside its steps."""
    curve: list[Point]
    total_s: float
    cpu_s: dict[str, float]
    """By role, with its children; `all` is everything."""
    peak_bytes: int
    """Of all its processes together; what they share counts once (PSS)."""

    @property
    def to_goal_s(self) -> float | None:
        """From the command to the first evaluation at GOAL or above. None: there was none."""
        return next((point.time_s for point in self.curve if point.accuracy >= GOAL), None)


@dataclass(frozen=True)
class Task:
    """What both train."""

    overrides: list[str]
    num_steps: int
    eval_every: int


class Watched:
    """A process tree whose memory and CPU time are looked at while it runs."""

    def __init__(self, command: list[str], folder: Path, accuracies: Callable[[], list[float]]) -> None:
        """Runs the command to its end.

        Args:
            folder: for its output; the run's directory, if it has one, is `folder`/run.
            accuracies: of the evaluations so far.
        """
        self._run_dir = folder / "run"
        self._accuracies = accuracies
        self.peak_bytes = 0
        self.curve: list[Point] = []
        self.cpu_s: dict[str, float] = {}
        self._begun_s = time.monotonic()
        log = folder / "output.txt"
        with log.open("w") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        while process.poll() is None:
            self._look(process.pid)
            time.sleep(POLL_S)
        self.total_s = time.monotonic() - self._begun_s
        if process.returncode:
            last_lines = "\n".join(log.read_text().splitlines()[-30:])
            raise SystemExit(f"{' '.join(command)} ended with exit code {process.returncode}:\n{last_lines}")

    def _look(self, pid: int) -> None:
        pids = list(tree(pid))
        self.peak_bytes = max(self.peak_bytes, sum(map(pss_bytes, pids)))
        roles = {name: tree(own) for name, own in role_pids(self._run_dir).items()}
        for name, own in {**roles, "all": iter(pids)}.items():
            self.cpu_s[name] = max(self.cpu_s.get(name, 0.0), cpu_s(own))
        time_s = time.monotonic() - self._begun_s
        self.curve += [Point(time_s, accuracy) for accuracy in self._accuracies()[len(self.curve) :]]


def pss_bytes(pid: int) -> int:
    """Memory of one process; what it shares with n others counts 1 ÷ (n + 1). 0 when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except GONE:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def run_asyncrl(task: Task, folder: Path) -> Outcome:
    run_dir = folder / "run"

    def accuracies() -> list[float]:
        return [row["eval/accuracy"] for row in read_rows(run_dir) if row.get("eval/accuracy") is not None]

    command = [sys.executable, "-m", "asyncrl", "launch", "--config", str(QUICKSTART), "--run-dir", str(run_dir)]
    watched = Watched([*command, *task.overrides], folder, accuracies)
    steps_s = [row["time/step_s"] for row in read_rows(run_dir) if row["step"] > WARMUP_STEPS]
    return _outcome(watched, task, steps_s)


def run_trl(task: Task, folder: Path, python: str) -> Outcome:
    config = load(QUICKSTART, task.overrides)
    out, file = folder / "trl.jsonl", folder / "task.json"
    given = {
        "model": config.model.path,
        **{split: _rows(split, config.run.seed) for split in ("train", "test")},
        "out": str(out),
        "num_steps": task.num_steps,
        "batch_size": config.learner.batch_size,
        "group_size": config.algorithm.group_size,
        "max_tokens": config.generator.max_tokens,
        "lr": config.learner.lr,
        "lr_warmup_steps": config.learner.warmup_steps,
        "eval_every": task.eval_every,
    }
    file.write_text(json.dumps(given))

    def lines() -> list[dict[str, float]]:
        text = out.read_text() if out.is_file() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    script = Path(__file__).with_name("trl_worker.py")
    watched = Watched(
        [python, str(script), str(file)], folder, lambda: [row["eval"] for row in lines() if "eval" in row]
    )
    return _outcome(watched, task, [row["step_s"] for row in lines() if row["step"] > WARMUP_STEPS and "step_s" in row])


def _rows(split: Literal["train", "test"], seed: int) -> list[dict[str, str]]:
    return [{"prompt": prompt, "answer": answer} for prompt, answer in arithmetic_rows(split, seed)]


def _outcome(watched: Watched, task: Task, steps_s: list[float]) -> Outcome:
    config = load(QUICKSTART, task.overrides)
    num_samples = config.learner.batch_size * config.algorithm.group_size
    rate = num_samples / median(steps_s)
    return Outcome(rate, watched.curve, watched.total_s, watched.cpu_s, watched.peak_bytes)


def compare(lengths: str, num_steps: int, num_repeats: int, python: str) -> list[dict[Run, Outcome]]:
    """Both in turn; which goes first changes with each repeat."""
    eval_every = EVAL_EVERY if lengths == "short" else 0  # only the warmed-up model learns
    overrides = [*LENGTHS[lengths], f"run.steps={num_steps}", f"run.eval_every={eval_every}", "run.save_every=0"]
    with tempfile.TemporaryDirectory(prefix="asyncrl-bench-") as folder:
        model = make_inputs(load(QUICKSTART, [*overrides, f"run.dir={folder}"])).model_path
        task = Task([*overrides, f"model.path={model}"], num_steps, eval_every)
        repeats: list[dict[Run, Outcome]] = []
        for number in range(num_repeats):
            order: list[Run] = ["asyncrl", "trl"] if number % 2 == 0 else ["trl", "asyncrl"]
            outcomes: dict[Run, Outcome] = {}
            for name in order:
                own = Path(folder) / f"{name}-{number}"
                own.mkdir()
                outcomes[name] = run_asyncrl(task, own) if name == "asyncrl" else run_trl(task, own, python)
                print(_line(f"{lengths}, {name} {number + 1}", outcomes[name]), flush=True)
            repeats.append(outcomes)
    return repeats


def _line(name: str, outcome: Outcome) -> str:
    to_goal = "–" if outcome.to_goal_s is None else f"{outcome.to_goal_s:.0f}"
    cpu = ", ".join(f"{role} {seconds:.0f}" for role, seconds in sorted(outcome.cpu_s.items()))
    figures = f"{outcome.samples_per_s:,.0f} | {to_goal} | {outcome.total_s:.0f} | {outcome.peak_bytes / 1e9:.2f}"
    return f"| {name} | {figures} | {cpu} |"


def measurements(lengths: str, repeats: list[dict[Run, Outcome]]) -> list[Measurement]:
    """Of asyncrl, and its ratios to TRL."""
    pairs = [(repeat["asyncrl"], repeat["trl"]) for repeat in repeats]
    reached = [(a.to_goal_s, b.to_goal_s) for a, b in pairs if a.to_goal_s is not None and b.to_goal_s is not None]
    rows = [
        Measurement(f"{lengths}: samples_per_s", [a.samples_per_s for a, _ in pairs], "more"),
        Measurement(
            f"{lengths}: samples_per_s_over_trl", [a.samples_per_s / b.samples_per_s for a, b in pairs], "more"
        ),
        Measurement(f"{lengths}: cpu_s_over_trl", [a.cpu_s["all"] / b.cpu_s["all"] for a, b in pairs], "less"),
        Measurement(f"{lengths}: peak_bytes_over_trl", [a.peak_bytes / b.peak_bytes for a, b in pairs], "less"),
    ]
    if reached:
        rows.append(Measurement(f"{lengths}: seconds_to_goal_over_trl", [a / b for a, b in reached], "less"))
    return rows


def plot(repeats: list[dict[Run, Outcome]], path: Path) -> None:
    """Held-out accuracy against seconds since the command, a line a run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    colours: dict[Run, str] = {"asyncrl": "tab:blue", "trl": "tab:orange"}
    for number, repeat in enumerate(repeats):
        for name, outcome in repeat.items():
            label = None if number else name
            axes.plot(*zip(*outcome.curve, strict=True), marker=".", color=colours[name], label=label)
    axes.set_xlabel("seconds since the command")
    axes.set_ylabel("accuracy on 256 held-out sums")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="of an environment with trl")
    parser.add_argument("--lengths", nargs="+", choices=LENGTHS, default=list(LENGTHS))
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, metavar="FILE.jsonl", help="writes each figure as a row")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="accuracy against time, of the short lengths")
    arguments = parser.parse_args()
    print("| run | samples/s | s to 90 % | s in all | peak GB | CPU s |\n|---|---|---|---|---|---|")
    rows: list[Measurement] = []
    for lengths in arguments.lengths:
        repeats = compare(lengths, arguments.steps, arguments.repeats, arguments.python)
        rows += measurements(lengths, repeats)
        if arguments.plot is not None and lengths == "short":
            plot(repeats, arguments.plot)
    print("\n| figure | median | values |\n|---|---|---|")
    for row in rows:
        print(f"| {row.figure} | {row.median:.3g} | {', '.join(f'{value:.3g}' for value in row.values)} |")
    if arguments.out is not None:
        write_rows(arguments.out, "beside_trl", rows)


if __name__ == "__main__":
    main()
