"""The learner alone, on one CPU core: CPU seconds of a step by layout, on the same batches.

    .venv/bin/python bench/pipeline/learner.py [--steps 12] [--out FILE.json]

A batch is 32 groups of 16 completions for the quickstart's model, with lengths of three kinds: the quickstart's (2 to 4
tokens), long-tailed ones (geometric, mean 17, cut at 56) and lognormal ones (median 8, σ = 1, cut at 56). The layouts
take turns on each batch, so their ratio holds on a busy machine. `padded` gives each sequence a row, `shared` computes
a group's prompt once. The first two steps are not counted.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray
from torch.distributed.device_mesh import init_device_mesh

from asyncrl.cluster.environment import environment
from asyncrl.config.load import load
from asyncrl.config.schema import Config
from asyncrl.data.arithmetic import arithmetic_rows
from asyncrl.data.tiny_model import build_tiny_model
from asyncrl.learn.update.packing import Layout
from asyncrl.learn.update.step import Learner
from asyncrl.types import Batch, Group
from bench.support.rows import Measurement, write_rows

LAYOUTS: tuple[Layout, ...] = ("padded", "shared")
NUM_GROUPS, GROUP_SIZE, NUM_UNCOUNTED = 32, 16, 2
DIGITS = (5, 14)
"""Token ids of the tiny model's alphabet."""

Lengths = Callable[[np.random.Generator], NDArray[np.int32]]
KINDS: dict[str, Lengths] = {
    "quickstart": lambda rng: rng.integers(2, 5, GROUP_SIZE).astype(np.int32),
    "long-tailed": lambda rng: np.minimum(rng.geometric(1 / 17, GROUP_SIZE), 56).astype(np.int32),
    "lognormal": lambda rng: np.clip(np.rint(rng.lognormal(np.log(8), 1.0, GROUP_SIZE)), 1, 56).astype(np.int32),
}


def as_a_learner() -> None:
    """Begins anew where the process has not the environment of a run's learner: glibc reads it at the start."""
    variables = environment("learner", "cpu", load("configs/quickstart.yaml", ["learner.num_threads=1"]))
    if any(os.environ.get(name) != value for name, value in variables.items()):
        os.execve(sys.executable, sys.orig_argv, os.environ | variables)


@contextmanager
def one_rank() -> Iterator[Config]:
    """The quickstart with its model made, in a process group of this process alone."""
    with tempfile.TemporaryDirectory() as folder:
        store = f"file://{folder}/rendezvous"
        dist.init_process_group("gloo", init_method=store, rank=0, world_size=1, timeout=timedelta(seconds=60))
        model = build_tiny_model(Path(folder), arithmetic_rows("train", 0), warmup_steps=1, seed=0)
        settings = [f"model.path={model}", "generator.max_tokens=56", "learner.num_threads=1"]
        yield load("configs/quickstart.yaml", settings)
        dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description="CPU seconds of a learner step by layout.")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--out", type=Path, metavar="FILE.jsonl", help="writes each figure as a row")
    arguments = parser.parse_args()
    as_a_learner()
    with one_rank() as config:
        figures = {kind: measure(config, lengths, arguments.steps) for kind, lengths in KINDS.items()}
    print("| lengths | padded, CPU s | shared, CPU s | shared ÷ padded | tokens ÷ positions, padded, shared |")
    print("|---|---|---|---|---|")
    for kind, (row, filled) in figures.items():
        seconds = f"{row['padded']:.3f} | {row['shared']:.3f} | {row['shared'] / row['padded']:.2f}"
        print(f"| {kind} | {seconds} | {filled['padded']:.1%}, {filled['shared']:.1%} |")
    if arguments.out is not None:
        rows = [
            (f"{kind}: {name}", value) for kind, (row, _) in figures.items() for name, value in _compared(row).items()
        ]
        write_rows(arguments.out, "learner", [Measurement(name, [value], "less") for name, value in rows])


def _compared(row: dict[str, float]) -> dict[str, float]:
    return {f"{layout}_cpu_s": seconds for layout, seconds in row.items()} | {
        "shared_over_padded": row["shared"] / row["padded"]
    }


def measure(config: Config, lengths: Lengths, num_steps: int) -> tuple[dict[str, float], dict[str, float]]:
    """Layout → median CPU seconds of a step, and the last step's tokens ÷ positions."""
    mesh = init_device_mesh("cpu", (1,))
    learners = {layout: Learner(config, mesh, num_steps) for layout in LAYOUTS}
    seconds: dict[str, list[float]] = {layout: [] for layout in LAYOUTS}
    filled: dict[str, float] = {}
    rng = np.random.default_rng(0)
    for step in range(num_steps):
        batch = random_batch(rng, step, lengths)
        for layout, learner in learners.items():
            learner.forward.layout = layout
            begun_s = time.process_time()
            metrics = learner.train(batch)
            seconds[layout].append(time.process_time() - begun_s)
            efficiency = metrics["tokens/packing_efficiency"]
            assert isinstance(efficiency, float)
            filled[layout] = efficiency
    return {layout: statistics.median(values[NUM_UNCOUNTED:]) for layout, values in seconds.items()}, filled


def random_batch(rng: np.random.Generator, step: int, lengths: Lengths) -> Batch:
    return Batch(step=step, groups=[random_group(rng, step, k, lengths) for k in range(NUM_GROUPS)])


def random_group(rng: np.random.Generator, step: int, position: int, lengths: Lengths) -> Group:
    drawn = lengths(rng)
    total = int(drawn.sum())
    return Group(
        index=step * NUM_GROUPS + position,
        row=position,
        prompt_token_ids=rng.integers(*DIGITS, int(rng.integers(4, 7))).astype(np.int32),
        lengths=drawn,
        tokens=rng.integers(*DIGITS, total).astype(np.int32),
        logprobs=np.full(total, -2.6, np.float32),
        versions=np.full(total, step, np.int32),
        rewards=rng.integers(0, 2, GROUP_SIZE).astype(np.float32),
        correct=np.zeros(GROUP_SIZE, np.bool_),
        truncated=np.zeros(GROUP_SIZE, np.bool_),
    )


if __name__ == "__main__":
    main()
