"""Random faults against a live run of the quickstart on the real stack: what was lost, and how fast it was noticed.

    python bench/chaos.py --kills 30 --seed 0

Two generators, two learner ranks. Each fault hits one role, when all are well: its process is killed or frozen, or a
generator's engine core is killed; or the launcher is killed, and the run resumed. The next one comes when a new step
has been trained and both generators serve. At the end the run is stopped with Ctrl-C and its books are checked
(`bench/books.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.books import books
from bench.processes import role_pids, tree

FAULTS = (
    *("kill generator", "freeze generator", "kill engine core", "kill learner", "freeze learner"),
    *("kill replay", "freeze replay", "kill launcher"),
)
HEARTBEAT_TIMEOUT_S = 5.0
STOP_TIMEOUT_S = 10.0
PATIENCE_S = 900.0
SAVE_EVERY = 25
MOST_SECONDS_BETWEEN = 5.0


@dataclass(frozen=True)
class Fault:
    """One that was survived."""

    kind: str
    detected_s: float
    """Until the launcher named the role; of the launcher's own death, until no process of the run was left."""
    new_step_s: float
    """Until a step was trained that none had trained before."""
    recovered_s: float
    """Until both generators served again, too; vLLM's start-up is most of it where one had died."""


class Chaos:
    """A launched run and the faults that it gets."""

    def __init__(self, run_dir: Path, num_kills: int, seed: int) -> None:
        self._run_dir = run_dir
        self._random = random.Random(seed)
        self._output = run_dir.with_suffix(".txt")
        overrides = {
            "run.steps": 1_000_000,
            "run.eval_every": 0,
            "run.save_every": SAVE_EVERY,
            "run.heartbeat_timeout_s": HEARTBEAT_TIMEOUT_S,
            "run.stop_timeout_s": STOP_TIMEOUT_S,
            "learner.batch_size": 8,
            "algorithm.group_size": 4,
            "generator.max_restarts": num_kills,
            "learner.max_restarts": num_kills,
            "replay.max_restarts": num_kills,
            "replay.max_lease_attempts": num_kills + 1,  # no prompt is poison here, however often it is hit
        }
        roles = ["--generators", "2", "--learners", "2"]
        self._launch("--run-dir", str(run_dir), *roles, *(f"{key}={value}" for key, value in overrides.items()))

    def _launch(self, *arguments: str) -> None:
        with self._output.open("a") as output:
            command = [sys.executable, "-m", "asyncrl", "launch", *arguments]
            self._process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)

    def rows(self) -> list[dict[str, float]]:
        file = self._run_dir / "metrics.jsonl"
        lines = file.read_text().splitlines() if file.is_file() else []
        return [json.loads(line) for line in lines]

    def is_well_after(self, step: float) -> bool:
        """A later step was trained, and both generators served then."""
        rows = self.rows()
        return bool(rows) and rows[-1]["step"] > step and rows[-1].get("generator/num_serving") == 2

    def wait(self, condition: Callable[[], bool], what: str) -> float:
        """The time when it holds."""
        start_s = time.monotonic()
        while not condition():
            if self._process.poll() is not None or time.monotonic() - start_s > PATIENCE_S:
                sys.exit(f"the run did not survive: no {what}\n{self._output.read_text()[-4000:]}")
            time.sleep(0.05)
        return time.monotonic()

    def fault(self, kind: str) -> Fault:
        """One fault, from the blow to the recovery."""
        time.sleep(self._random.uniform(0.0, MOST_SECONDS_BETWEEN))
        step = self.rows()[-1]["step"]
        start_s = time.monotonic()
        detected_s = self._kill_launcher() if kind == "kill launcher" else self._hit_role(kind)
        # The row of a step is written when the next one comes, so one more than that tells of a new one.
        new_step_s = self.wait(lambda: self.rows()[-1]["step"] > step + 1, f"new step after {kind}")
        known = self.rows()[-1]["step"] + 1
        self.wait(lambda: self.is_well_after(known), f"return of both generators after {kind}")
        return Fault(kind, detected_s - start_s, new_step_s - start_s, time.monotonic() - start_s)

    def _hit_role(self, kind: str) -> float:
        action, _, part = kind.partition(" ")
        of_role = {"engine core": "generator", "replay": "replay"}.get(part, part)
        name = of_role if of_role == "replay" else f"{of_role}-{self._random.randrange(2)}"
        num_named = self._num_named(of_role)
        pid = role_pids(self._run_dir)[name]
        if part == "engine core":
            children = [child for child in tree(pid) if child != pid]
            pid = next(child for child in children if len(list(tree(child))) > 1)
        os.kill(pid, signal.SIGKILL if action == "kill" else signal.SIGSTOP)
        return self.wait(lambda: self._num_named(of_role) > num_named, f"word of {name} ({kind})")

    def _kill_launcher(self) -> float:
        roles = [pid for pid in role_pids(self._run_dir).values() if Path(f"/proc/{pid}").exists()]
        self._process.kill()
        self._process.wait()
        while any(Path(f"/proc/{pid}").exists() for pid in roles):
            time.sleep(0.05)
        ended_s = time.monotonic()
        self._launch("--resume", str(self._run_dir))
        return ended_s

    def _num_named(self, of_role: str) -> int:
        return len(re.findall(rf"^{of_role}(-\d+)? (failed|was silent)", self._output.read_text(), re.MULTILINE))

    def stop(self) -> None:
        """As Ctrl-C."""
        self._process.send_signal(signal.SIGINT)
        self._process.wait(PATIENCE_S)

    def kill(self) -> None:
        self._process.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    kinds = [FAULTS[number % len(FAULTS)] for number in range(arguments.kills)]
    random.Random(arguments.seed).shuffle(kinds)
    with tempfile.TemporaryDirectory() as folder:
        chaos = Chaos(Path(folder) / "chaos", arguments.kills, arguments.seed)
        try:
            chaos.wait(lambda: chaos.is_well_after(0), "first step of two generators")
            faults = []
            for number, kind in enumerate(kinds, start=1):
                faults.append(chaos.fault(kind))
                print(number, faults[-1], flush=True)
            chaos.stop()
        finally:
            chaos.kill()
        print_tables(faults, books(Path(folder) / "chaos"))


def print_tables(faults: list[Fault], found: dict[str, float]) -> None:
    lines = [
        "",
        "| fault | times | noticed, s (median, most) | new step, s (median, most) | all serve, s (median, most) |",
    ]
    lines.append("|---|---|---|---|---|")
    for kind in FAULTS:
        of_kind = [fault for fault in faults if fault.kind == kind]
        if of_kind:
            columns = [
                [f.detected_s for f in of_kind],
                [f.new_step_s for f in of_kind],
                [f.recovered_s for f in of_kind],
            ]
            cells = [f"{statistics.median(column):.1f}, {max(column):.1f}" for column in columns]
            lines.append(f"| {kind} | {len(of_kind)} | {' | '.join(cells)} |")
    lines += ["", *(f"{name}: {value:g}" for name, value in found.items())]
    print("\n".join(lines))


if __name__ == "__main__":
    main()
