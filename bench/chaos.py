"""Random faults against a live run of the quickstart on the real stack: what was lost, and how fast it was noticed.

    python bench/chaos.py --kills 10 --seed 0

Each fault hits one of two generators when both serve: its process is killed or frozen, or its engine core is killed.
The next one comes when both serve again. At the end the run is stopped with Ctrl-C and its books are checked: every
step once, each of its prompts once, no token over the staleness bound.
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

from bench.processes import role_pids, tree

FAULTS = ("kill generator", "freeze generator", "kill engine core")
HEARTBEAT_TIMEOUT_S = 5.0
PATIENCE_S = 900.0
BATCH_SIZE = 8
MOST_SECONDS_BETWEEN = 5.0


@dataclass(frozen=True)
class Fault:
    """One that was survived."""

    kind: str
    detected_s: float
    """Until the launcher named the generator."""
    recovered_s: float
    """Until it served again; vLLM's start-up is most of it."""
    longest_step_gap_s: float
    """Between steps meanwhile."""


class Chaos:
    """A launched run and the faults that it gets."""

    def __init__(self, run_dir: Path, num_kills: int, seed: int) -> None:
        self._run_dir = run_dir
        self._random = random.Random(seed)
        self._output = run_dir.with_suffix(".txt")
        overrides = {
            "run.steps": 1_000_000,
            "run.eval_every": 0,
            "run.heartbeat_timeout_s": HEARTBEAT_TIMEOUT_S,
            "learner.batch_size": BATCH_SIZE,
            "algorithm.group_size": 4,
            "generator.max_restarts": num_kills,
            "replay.max_lease_attempts": num_kills + 1,  # no prompt is poison here, however often it is hit
        }
        command = [sys.executable, "-m", "asyncrl", "launch", "--run-dir", str(run_dir), "--generators", "2"]
        command += [f"{key}={value}" for key, value in overrides.items()]
        with self._output.open("w") as output:
            self._process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)

    def both_serve(self) -> bool:
        rows = self.rows()
        return bool(rows) and rows[-1].get("generator/num_serving") == 2

    def rows(self) -> list[dict[str, float]]:
        file = self._run_dir / "metrics.jsonl"
        lines = file.read_text().splitlines() if file.is_file() else []
        return [json.loads(line) for line in lines]

    def wait(self, condition: Callable[[], bool], what: str) -> float:
        """Seconds until it holds."""
        start_s = time.monotonic()
        while not condition():
            if self._process.poll() is not None or time.monotonic() - start_s > PATIENCE_S:
                sys.exit(f"the run did not survive: no {what}\n{self._output.read_text()[-4000:]}")
            time.sleep(0.05)
        return time.monotonic() - start_s

    def fault(self) -> Fault:
        """One fault, from the blow to the recovery."""
        time.sleep(self._random.uniform(0.0, MOST_SECONDS_BETWEEN))
        kind, name = self._random.choice(FAULTS), f"generator-{self._random.randrange(2)}"
        num_named, start_step = self._num_named(name), len(self.rows())
        start_s = time.monotonic()
        self._strike(kind, role_pids(self._run_dir)[name])
        detected_s = self.wait(lambda: self._num_named(name) > num_named, f"word of {name} ({kind})")
        self.wait(lambda: not self.both_serve(), f"row without {name}")
        self.wait(self.both_serve, f"return of {name} ({kind})")
        steps = [row["time/step_s"] for row in self.rows()[start_step:]]
        return Fault(kind, detected_s, time.monotonic() - start_s, max(steps, default=float("nan")))

    def _strike(self, kind: str, pid: int) -> None:
        if kind == "kill engine core":
            children = [child for child in tree(pid) if child != pid]
            os.kill(next(child for child in children if len(list(tree(child))) > 1), signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGKILL if kind == "kill generator" else signal.SIGSTOP)

    def _num_named(self, name: str) -> int:
        return len(re.findall(rf"^{name} (failed|was silent)", self._output.read_text(), re.MULTILINE))

    def stop(self) -> None:
        """As Ctrl-C."""
        self._process.send_signal(signal.SIGINT)
        self._process.wait(PATIENCE_S)

    def kill(self) -> None:
        self._process.kill()

    def books(self) -> dict[str, float]:
        """What must be zero, and how much was done."""
        rows = self.rows()
        latest = max((self._run_dir / "checkpoints").iterdir())
        state = json.loads((latest / "trainer.json").read_text())
        steps = [int(row["step"]) for row in rows]
        ended = state["next_index"] + len(state["ended"])
        return {
            "steps": len(steps),
            "prompts trained": BATCH_SIZE * len(steps),
            "steps missing or double": len(set(steps) ^ set(range(1, len(steps) + 1))) + len(steps) - len(set(steps)),
            "prompts lost": max(0, ended - BATCH_SIZE * state["step"]),
            "prompts trained twice": max(0, BATCH_SIZE * state["step"] - ended),
            "tokens over the bound": sum(row["staleness/violations"] for row in rows),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        chaos = Chaos(Path(folder) / "chaos", arguments.kills, arguments.seed)
        try:
            chaos.wait(chaos.both_serve, "first step of two generators")
            faults = []
            for number in range(arguments.kills):
                faults.append(chaos.fault())
                print(number + 1, faults[-1], flush=True)
            chaos.stop()
        finally:
            chaos.kill()
        print_tables(faults, chaos.books())


def print_tables(faults: list[Fault], books: dict[str, float]) -> None:
    lines = ["", "| fault | times | noticed, s (median, most) | serves again, s (median) | longest step meanwhile, s |"]
    lines.append("|---|---|---|---|---|")
    for kind in FAULTS:
        of_kind = [fault for fault in faults if fault.kind == kind]
        if of_kind:
            noticed = [fault.detected_s for fault in of_kind]
            back = statistics.median(fault.recovered_s for fault in of_kind)
            longest = max(fault.longest_step_gap_s for fault in of_kind)
            median, most = statistics.median(noticed), max(noticed)
            lines.append(f"| {kind} | {len(of_kind)} | {median:.1f}, {most:.1f} | {back:.0f} | {longest:.1f} |")
    lines += ["", *(f"{name}: {value:g}" for name, value in books.items())]
    print("\n".join(lines))


if __name__ == "__main__":
    main()
