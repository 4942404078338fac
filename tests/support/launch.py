"""A run of the real `asyncrl launch`, watched from outside."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import psutil

from asyncrl.run.metrics import read_rows
from asyncrl.run.trainer_state import latest, read_state

ROOT = Path(__file__).parents[2]
DEADLINE_S = 560.0
INTERRUPTED = 130
"""Exit code after Ctrl-C."""

STAND_IN = "generator.engine=bench.standin.engine:StandInEngine"
"""Real weights and exact logprobs, up in 2 s: for tests of what happens around an engine, not in it."""


@dataclass
class Launched:
    """A launcher process and its run directory."""

    process: subprocess.Popen[str]
    run_dir: Path
    output_file: Path

    def wait(self) -> int:
        return self.process.wait(DEADLINE_S)

    @property
    def output(self) -> str:
        return self.output_file.read_text()

    def rows(self) -> list[dict[str, object]]:
        """Those that are whole: the last line may be half written."""
        return read_rows(self.run_dir)

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert self.process.poll() is None, f"ended before {what}:\n{self.output}"
            assert time.monotonic() < deadline, f"no {what} in time:\n{self.output}"
            time.sleep(0.2)

    def wait_for_step(self, step: int) -> None:
        self.wait_until(lambda: self.last_step >= step, f"step {step}")

    @property
    def last_step(self) -> int:
        """The last one that the output shows."""
        return max(map(int, re.findall(r"^step +(\d+)/", self.output, re.MULTILINE)), default=0)

    def wait_for_more_steps(self, num_steps: int) -> None:
        """From the last one that the output shows: whatever was done before the call does not count."""
        self.wait_for_step(self.last_step + num_steps)

    def wait_for_output(self, text: str) -> None:
        self.wait_until(lambda: text in self.output, repr(text))

    def wait_for_row(self, key: str, value: float, after: int = 0) -> int:
        """Until there is such a row behind the first `after`; how many rows there are up to it."""

        def found() -> list[int]:
            return [number for number, row in enumerate(self.rows(), 1) if number > after and row.get(key) == value]

        self.wait_until(lambda: bool(found()), f"row with {key} = {value}")
        return found()[0]

    def pid_of(self, role: str) -> int:
        """Of its latest process."""
        found = re.findall(rf"{role} is process (\d+)", (self.run_dir / "logs" / f"{role}.log").read_text())
        return int(found[-1])


def launch(
    folder: Path,
    *arguments: str,
    name: str = "run",
    variables: Mapping[str, str] | None = None,
    on: Sequence[str] = (),
) -> Launched:
    """Starts a run below `folder`; whoever calls this ends it.

    Args:
        variables: its whole environment; None = this one.
        on: what the command begins with, to run it elsewhere.
    """
    run_dir, output_file = folder / name, folder / f"{name}.txt"
    where = [] if "--resume" in arguments else ["--run-dir", str(run_dir)]
    command = [*on, sys.executable, "-m", "asyncrl", "launch", *where, *arguments]
    with output_file.open("a") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=output, stderr=subprocess.STDOUT, text=True)
    return Launched(process, run_dir, output_file)


def quick(steps: int, *overrides: str) -> list[str]:
    sizes = ["learner.batch_size=8", "algorithm.group_size=4", "run.eval_prompts=16", "model.warmup_steps=100"]
    return [f"run.steps={steps}", *sizes, *overrides]


def assert_exact(run: Launched, num_steps: int) -> None:
    """Every step once, each of its prompts once, and the staleness bound kept."""
    rows = run.rows()
    assert [row["step"] for row in rows] == list(range(1, num_steps + 1))
    assert all(row["staleness/violations"] == 0 for row in rows)
    assert max(row["staleness/max"] for row in rows) <= 2  # type: ignore[type-var]
    if run.process.returncode == INTERRUPTED:
        # Replay may not have heard of the last checkpoint, and may keep one batch that came too late to be trained.
        assert prompts_of_steps(run, "trained", "batched") in ([8] * num_steps, [8] * (num_steps + 1))
    else:
        assert trained(run) == [8] * num_steps


def trained(run: Launched) -> list[int]:
    """How many prompts each step was given, by the ledger; all of them are in a checkpoint."""
    assert prompts_of_steps(run, "batched") == []
    return prompts_of_steps(run, "trained")


def prompts_of_steps(run: Launched, *states: str) -> list[int]:
    """How many prompts in these states each step has, by the ledger."""
    with closing(sqlite3.connect(run.run_dir / "ledger.sqlite")) as ledger:
        rows = ledger.execute("SELECT step, state FROM prompts").fetchall()
    steps = Counter(step for step, state in rows if state in states)
    assert sorted(steps) == list(range(len(steps)))
    return [steps[step] for step in range(len(steps))]


def role_processes(run: Launched) -> list[psutil.Process]:
    """Every role with its children: vLLM's engines and workers, reward processes."""
    logs = (run.run_dir / "logs").glob("*.log")
    roles = [psutil.Process(run.pid_of(log.stem)) for log in logs if log.stem != "launcher"]
    return [*roles, *(child for role in roles for child in role.children(recursive=True))]


def freeze_behind_a_checkpoint(run: Launched) -> int:
    """Stops learner 0 where its latest checkpoint lacks a step, so that whoever goes on from it retraces one.

    Returns:
        The step of that checkpoint.
    """
    learner = psutil.Process(run.pid_of("learner-0"))
    while True:
        learner.suspend()
        while learner.status() != psutil.STATUS_STOPPED:
            time.sleep(0.001)
        saved = latest(run.run_dir)
        if saved is not None and run.last_step > read_state(saved).step:
            return read_state(saved).step
        learner.resume()
        run.wait_for_more_steps(1)


def engine_core(run: Launched, generator: str) -> psutil.Process:
    """vLLM's."""
    return largest_child(psutil.Process(run.pid_of(generator)))


def largest_child(process: psutil.Process) -> psutil.Process:
    """In memory. Of a process with an engine, beside its reward processes, the core."""
    return max(process.children(), key=lambda child: child.memory_info().rss)


def assert_all_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert not alive, f"still running: {alive}"
