"""Random faults against a live run of the quickstart on the real stack: what was lost, and how fast it was noticed.

    python bench/chaos/chaos.py --kills 30 --seed 0
    python bench/chaos/chaos.py --kills 30 --engine sglang
    python bench/chaos/chaos.py --kills 200 --stand-in

Two generators, two learner ranks. Each fault hits one role, when all are well: its process is killed or frozen, or a
generator's engine core is killed; or the launcher is killed, and the run resumed. The next one comes when a new step
has been trained and both generators serve. At the end the run is stopped with Ctrl-C and its books are checked
(`bench/chaos/books.py`). Exits with 1 when they are not clean, or a fault was noticed or recovered from too late.

With `--stand-in` the generators have an engine that starts in seconds (`bench/standin/engine.py`), for long soaks. It
is no process of its own, so that kind of fault is left out.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from asyncrl.config.schema import VLLM
from bench.chaos.books import books
from bench.chaos.output import Output, last_row
from bench.chaos.report import Fault, measurements, problems, table
from bench.support.processes import is_role, role_pids, tree
from bench.support.rows import write_rows

ROOT = Path(__file__).parents[2]
ENGINE_FAULT = "kill engine core"
FAULTS = (
    *("kill generator", "freeze generator", ENGINE_FAULT, "kill learner", "freeze learner"),
    *("kill replay", "freeze replay", "kill launcher"),
)
HEARTBEAT_TIMEOUT_S = 5.0
STOP_TIMEOUT_S = 10.0
PATIENCE_S = 900.0
POLL_S = 0.05
SAVE_EVERY = 25
INTERRUPTED = 130
"""asyncrl's exit code after Ctrl-C."""
STAND_IN = "bench.standin.engine:StandInEngine"
PAUSE_S, STAND_IN_PAUSE_S = 5.0, 1.0
"""The longest before a fault, so that it comes in any phase of a step."""


class NotSurvivedError(Exception):
    """The run ended, or stands still."""


class Chaos:
    """A launched run and the faults that it gets."""

    def __init__(self, run_dir: Path, num_kills: int, seed: int, engine: str) -> None:
        self._run_dir = run_dir
        self._random = random.Random(seed)
        self._longest_pause_s = STAND_IN_PAUSE_S if engine == STAND_IN else PAUSE_S
        self._output = Output(run_dir.with_suffix(".txt"))
        overrides = {
            "run.steps": 1_000_000,
            "run.eval_every": 0,
            "run.save_every": SAVE_EVERY,
            "run.heartbeat_timeout_s": HEARTBEAT_TIMEOUT_S,
            "run.stop_timeout_s": STOP_TIMEOUT_S,
            "learner.batch_size": 8,
            "algorithm.group_size": 4,
            "generator.engine": engine,
            "generator.max_restarts": num_kills,
            "learner.max_restarts": num_kills,
            "replay.max_restarts": num_kills,
            "replay.max_lease_attempts": num_kills + 1,  # no prompt is poison here, however often it is hit
        }
        roles = ["--generators", "2", "--learners", "2"]
        self._launch("--run-dir", str(run_dir), *roles, *(f"{key}={value}" for key, value in overrides.items()))

    def _launch(self, *arguments: str) -> None:
        with self._output.path.open("a") as output:
            command = [sys.executable, "-m", "asyncrl", "launch", *arguments]
            self._process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)

    def step(self) -> float:
        """The last one that has a row; −1 before the first."""
        row = last_row(self._run_dir)
        return -1 if row is None else row["step"]

    def has_trained_after(self, step: float, num_serving: int = 0) -> bool:
        """A later step was trained while a launcher was there, and so many generators served then."""
        row = last_row(self._run_dir)
        # Rows without it are of steps that the learner made when the launcher had died; the next launcher adds them.
        return row is not None and row["step"] > step and row.get("generator/num_serving", -1) >= num_serving

    def wait(self, condition: Callable[[], bool], what: str) -> float:
        """The time when it holds.

        Raises:
            NotSurvivedError: the launcher ended, or it took too long.
        """
        start_s = time.monotonic()
        while not condition():
            if self._process.poll() is not None or time.monotonic() - start_s > PATIENCE_S:
                raise NotSurvivedError(f"the run did not survive: no {what}\n{self._output.tail()}")
            time.sleep(POLL_S)
        return time.monotonic()

    def fault(self, kind: str) -> Fault:
        """One fault, from the blow to the recovery."""
        time.sleep(self._random.uniform(0.0, self._longest_pause_s))
        start_s = time.monotonic()
        detected_s = self._kill_launcher() if kind == "kill launcher" else self._hit_role(kind)
        # The row of a step is written when the next one comes, so one more than that tells of a new one.
        known = self.step() + 1
        new_step_s = self.wait(lambda: self.has_trained_after(known), f"new step after {kind}")
        known = self.step() + 1
        self.wait(lambda: self.has_trained_after(known, num_serving=2), f"return of both generators after {kind}")
        return Fault(kind, detected_s - start_s, new_step_s - start_s, time.monotonic() - start_s)

    def _hit_role(self, kind: str) -> float:
        action, _, part = kind.partition(" ")
        of_role = {"engine core": "generator", "replay": "replay"}.get(part, part)
        name = of_role if of_role == "replay" else f"{of_role}-{self._random.randrange(2)}"
        num_named = self._output.num_named(of_role)
        pid = role_pids(self._run_dir)[name]
        if not is_role(pid):
            raise NotSurvivedError(f"{name}, process {pid}, is gone before it was hit ({kind})")
        if kind == ENGINE_FAULT:
            pid = _engine_core(pid)
        os.kill(pid, signal.SIGKILL if action == "kill" else signal.SIGSTOP)
        return self.wait(lambda: self._output.num_named(of_role) > num_named, f"word of {name} ({kind})")

    def _kill_launcher(self) -> float:
        roles = role_pids(self._run_dir)
        self._process.kill()
        self._process.wait()
        deadline_s = time.monotonic() + PATIENCE_S
        while alive := [name for name, pid in roles.items() if is_role(pid)]:
            if time.monotonic() > deadline_s:
                raise NotSurvivedError(f"roles outlive the launcher: {', '.join(alive)}")
            time.sleep(POLL_S)
        self._launch("--resume", str(self._run_dir))
        return time.monotonic()

    def stop(self) -> None:
        """As Ctrl-C.

        Raises:
            NotSurvivedError: the run did not end well.
        """
        self._process.send_signal(signal.SIGINT)
        exit_code = self._process.wait(PATIENCE_S)
        if exit_code != INTERRUPTED:
            raise NotSurvivedError(f"Ctrl-C ended with exit code {exit_code}\n{self._output.tail()}")

    def kill(self) -> None:
        """Whatever is left, frozen roles too."""
        self._process.kill()
        for pid in filter(is_role, role_pids(self._run_dir).values()):
            os.kill(pid, signal.SIGKILL)


def _engine_core(generator: int) -> int:
    """vLLM's, which has a worker, or SGLang's scheduler, which holds the model itself."""
    children = [child for child in tree(generator) if child != generator]
    with_children = [child for child in children if len(list(tree(child))) > 1]
    return next(iter(with_children), max(children, key=lambda child: psutil.Process(child).memory_info().rss))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stand-in", action="store_true", help="an engine that starts in seconds, in place of vLLM")
    parser.add_argument("--engine", default=VLLM, help="generator.engine: vllm, sglang, or both, comma-separated")
    parser.add_argument("--out", type=Path, metavar="FILE.jsonl", help="writes each figure as a row")
    arguments = parser.parse_args()
    possible = [kind for kind in FAULTS if not (arguments.stand_in and kind == ENGINE_FAULT)]
    kinds = [possible[number % len(possible)] for number in range(arguments.kills)]
    random.Random(arguments.seed).shuffle(kinds)
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    chaos = Chaos(
        folder / "chaos", arguments.kills, arguments.seed, STAND_IN if arguments.stand_in else arguments.engine
    )
    try:
        faults, broken = strike(chaos, kinds)
    finally:
        chaos.kill()
    found = {} if broken else books(folder / "chaos")
    print("", table(faults, arguments.stand_in), "", *(f"{key}: {value:g}" for key, value in found.items()), sep="\n")
    if arguments.out is not None:
        write_rows(arguments.out, "chaos", measurements(faults, found))
    wrong = broken + problems(faults, arguments.stand_in, found)
    if wrong:
        sys.exit("\n".join(["", "FAILED, the run's folder is kept:", str(folder), *wrong]))
    shutil.rmtree(folder)


def strike(chaos: Chaos, kinds: list[str]) -> tuple[list[Fault], list[str]]:
    """All faults, then Ctrl-C. Returns those that were survived, and why the run ended before its time."""
    faults: list[Fault] = []
    start_s = time.monotonic()
    try:
        chaos.wait(lambda: chaos.has_trained_after(0, num_serving=2), "first step of two generators")
        for number, kind in enumerate(kinds, start=1):
            print(f"{number} of {len(kinds)}, {kind} at step {chaos.step():.0f}: ", end="", flush=True)
            faults.append(chaos.fault(kind))
            print(f"{faults[-1].line}; {time.monotonic() - start_s:.0f} s in all", flush=True)
        chaos.stop()
    except NotSurvivedError as error:
        print("not survived", flush=True)
        return faults, [str(error)]
    return faults, []


if __name__ == "__main__":
    main()
