"""Does a step of a real size take the memory that `asyncrl check` predicts? One learner rank, on this machine's CPU.

    .venv/bin/python -m bench step_memory [--layers 28] [--steps 2] [--out FILE.jsonl] [key=value ...]

The model is a random Qwen3 of 0.6B (28 layers), made on the spot. A process of its own loads it as a learner does and
takes two steps of one prompt and 4 completions, so that AdamW's moments are there. Its peak of anonymous memory beyond
what it held before loading stands beside the estimate's lines of the same configuration, without those of a publish and
of a checkpoint, which are not made here.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from asyncrl.cluster.memory import estimate
from asyncrl.cluster.topology import Node, plan
from asyncrl.config.load import load
from asyncrl.config.model_shape import read_model_shape
from asyncrl.config.schema import Config
from asyncrl.learn.update.step import Learner
from asyncrl.types import Batch
from bench.support.device_memory import status_bytes
from bench.support.groups import random_group
from bench.support.models import qwen3_config, save_model
from bench.support.own_process import TIMEOUT_S, in_process
from bench.support.rows import Measurement, write_rows

POLL_S = 0.005
GROUP_SIZE, PROMPT_TOKENS, COMPLETION_TOKENS = 4, 16, 240
LENGTHS = np.full(GROUP_SIZE, COMPLETION_TOKENS, np.int32)
VOCABULARY = 151_936
NOT_MADE = ("publish", "checkpoint")
"""Lines of the estimate that a step alone does not have begin so."""


class WatchedPeak:
    """Most bytes of this process's anonymous memory, while it is watched."""

    def __init__(self) -> None:
        self.num_bytes = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stopped.wait(POLL_S):
            self.num_bytes = max(self.num_bytes, status_bytes("RssAnon"))

    def stop(self) -> int:
        self._stopped.set()
        self._thread.join()
        return self.num_bytes


def main() -> int:
    parser = argparse.ArgumentParser(description="Memory of a learner's step beside the estimate.")
    parser.add_argument("--layers", type=int, default=28, help="28 are Qwen3-0.6B")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--out", type=Path, metavar="FILE.jsonl", help="writes each figure as a row")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="any key of the configuration")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name_of_folder:
        folder = Path(name_of_folder)
        in_process(save_model, qwen3_config(arguments.layers, VOCABULARY), torch.bfloat16, folder / "model")
        config = configured(folder / "model", arguments.overrides)
        predicted = predict(config)
        peak, seconds = in_process(take_steps, folder, config, arguments.steps)
    for name, num_bytes in predicted.items():
        print(f"{name:<50} {num_bytes / 1e9:6.2f} GB")
    total = sum(predicted.values())
    print(f"predicted {total / 1e9:.2f} GB, measured {peak / 1e9:.2f} GB, predicted ÷ measured {total / peak:.3f}")
    print("seconds of the steps: " + ", ".join(f"{value:.1f}" for value in seconds))
    if arguments.out is not None:
        write_rows(arguments.out, "step_memory", [Measurement("off_by", [abs(total / peak - 1)], "less")])
    return 0


def configured(model: Path, overrides: list[str]) -> Config:
    keys = [
        f"model.path={model}",
        "data.train=arithmetic",
        "learner.batch_size=1",
        f"algorithm.group_size={GROUP_SIZE}",
        f"generator.max_tokens={COMPLETION_TOKENS}",
        f"learner.micro_batch_tokens={GROUP_SIZE * (PROMPT_TOKENS + COMPLETION_TOKENS)}",
    ]
    return load(None, [*keys, *overrides])


def predict(config: Config) -> dict[str, float]:
    """Line → bytes, of what a step alone has."""
    shape = read_model_shape(config.model.path, trust_remote_code=False)
    of_learner = estimate(config, shape, plan(config, [Node(8, 0)], "cpu"))[0]
    return {item.name: item.num_bytes for item in of_learner.items if not item.name.startswith(NOT_MADE)}


def take_steps(folder: Path, config: Config, num_steps: int) -> tuple[int, list[float]]:
    """Bytes of the peak beyond the start, and each step's seconds."""
    store = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=store, rank=0, world_size=1, timeout=timedelta(seconds=TIMEOUT_S))
    mesh = init_device_mesh("cpu", (1,))
    before, peak, seconds = status_bytes("RssAnon"), WatchedPeak(), []
    learner = Learner(config, mesh, num_steps)
    for step in range(num_steps):
        begun_s = time.perf_counter()
        learner.train(Batch(step=step, groups=[random_group(step, 0, LENGTHS, PROMPT_TOKENS, VOCABULARY)]))
        seconds.append(time.perf_counter() - begun_s)
    most = peak.stop()
    dist.destroy_process_group()
    return most - before, seconds


if __name__ == "__main__":
    raise SystemExit(main())
