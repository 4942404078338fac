"""Bugs of the kinds that users of such systems have reported, seeded one at a time; each names the check that finds it.

    python -m bench mutants                   the stand-in engine
    python -m bench mutants --engine vllm     the real vLLM on a CPU

All are installed at first and switched on one by one, so that a vLLM whose workers are forks of this process has them
too. See bench/README.md.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

from asyncrl.config.schema import VLLM
from asyncrl.selftest.model import with_model
from asyncrl.selftest.result import Result
from asyncrl.selftest.suite import CHECKS, run_checks
from asyncrl.selftest.system import System
from bench.selftest import learner_bugs, publish_bugs  # noqa: F401 - each names its bugs when it is imported
from bench.selftest.engine_bugs import LATE
from bench.selftest.local_system import STAND_IN, config_of, local_system
from bench.selftest.seeding import Mutant, installed, switched_on

DEADLINE_S = 30.0


def results_of(system: System, one: Mutant) -> list[Result]:
    """What the check that has to find it says; the system serves a sound version before."""
    system.publish()
    with switched_on(one):
        results = list(run_checks(system, [check for check in CHECKS if check.name == one.check], lambda _: None))
    if one.name == LATE:
        _wait_until_served(system)
    return results


def _wait_until_served(system: System) -> None:
    """What a late generator does late must not fall into the next mutant's time."""
    deadline_s = time.monotonic() + DEADLINE_S
    generator = system.generators[0]
    while time.monotonic() < deadline_s:
        (sampled,) = system.sample(generator, [system.prompt(0, 4)], system.sampling(1))
        if sampled.completions[0].versions[0] == system.version:
            return
    raise TimeoutError(f"version {system.version} was not served within {DEADLINE_S:.0f} s")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default=STAND_IN, help=f"vllm, or module:Class (default: {STAND_IN})")
    arguments = parser.parse_args()
    engine = VLLM if arguments.engine == "vllm" else arguments.engine
    with tempfile.TemporaryDirectory() as parent, installed(engine) as mutants:
        missed = run_all(engine, Path(parent), mutants)
    print(f"{len(mutants) - missed} of {len(mutants)} found")
    return 1 if missed else 0


def run_all(engine: str, parent: Path, mutants: list[Mutant]) -> int:
    """Prints a line for each; returns how many were missed."""
    config = with_model(config_of("tiny", engine), parent)
    missed = 0
    with local_system(config) as system:
        for one in mutants:
            (result,) = results_of(system, one)
            missed += result.status != "failed"
            print(f"{'found' if result.status == 'failed' else 'MISSED'}  {one.name}  ({one.check}: {result.reason})")
            sys.stdout.flush()
    return missed


if __name__ == "__main__":
    sys.exit(main())
