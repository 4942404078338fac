"""Is the split that the simulator picks the best one? Every split of N devices, for real but for compute that waits.

    .venv/bin/python -m bench best_split [--devices 6] [--etas 1 4] [--steps 30] [--out FILE.jsonl]

As `emulation.py`: the real replay, ledger, sockets and leases; decoding, training and publishes take the same times in
the run and in the simulation. M learner ranks divide a batch's tokens; one process stands for them, as rank 0 alone
speaks with replay. The pick is `asyncrl plan`'s: the freshest that is at most 5 % slower than the fastest.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

from asyncrl.config.load import load
from asyncrl.simulate import plan
from asyncrl.simulate.setting import Setting
from bench.planning.emulation import HEADER, TIMINGS, WORKLOAD, Figure, compared, emulate, line, predict
from bench.support.rows import Measurement, write_rows

SIZES = ("model.path=tiny", "data.train=arithmetic", "learner.batch_size=16", "algorithm.group_size=4")
TRAINING = replace(TIMINGS, train_per_token_s=0.0004)
"""With it neither few generators nor few learners are best."""


def setting(num_generators: int, num_learners: int, eta: int, num_steps: int) -> Setting:
    keys = [f"generator.count={num_generators}", f"learner.count={num_learners}", f"replay.max_staleness={eta}"]
    return Setting(load(None, [*SIZES, *keys]), TRAINING, WORKLOAD, num_steps)


@dataclass(frozen=True)
class Tried:
    """One split with one η."""

    name: str
    result: Figure


def choose(figures: dict[str, Figure]) -> str:
    """By the rule of `asyncrl plan`."""
    return plan.choose([Tried(name, figure) for name, figure in figures.items()]).name


def main() -> int:
    parser = argparse.ArgumentParser(description="Is the split that the simulator picks the best one?")
    parser.add_argument("--devices", type=int, default=6)
    parser.add_argument("--etas", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--out", type=Path, metavar="FILE.jsonl")
    arguments = parser.parse_args()
    print(HEADER)
    measured: dict[str, Figure] = {}
    simulated: dict[str, Figure] = {}
    rows: list[Measurement] = []
    for eta in arguments.etas:
        for num_generators in range(1, arguments.devices):
            num_learners = arguments.devices - num_generators
            name = f"{num_generators} + {num_learners}, η = {eta}"
            tried = setting(num_generators, num_learners, eta, arguments.steps)
            measured[name], simulated[name] = emulate(tried), predict(tried)
            rows += compared(name, measured[name], simulated[name])
            print(line(name, measured[name], simulated[name]), flush=True)
    picked, best = choose(simulated), choose(measured)
    of_fastest = measured[picked].samples_per_s / max(figure.samples_per_s for figure in measured.values())
    print(f"picked by the simulator: {picked}; by the measured figures: {best}")
    print(f"the pick has {of_fastest:.1%} of the fastest measured samples/s")
    if arguments.out is not None:
        write_rows(arguments.out, "best_split", [*rows, Measurement("pick_over_fastest", [of_fastest], "more")])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
