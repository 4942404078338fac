"""What stays gathered between micro-batches and what checkpointing keeps: CPU seconds of a learner step on two ranks.

    .venv/bin/python bench/pipeline/micro_batches.py [--steps 8] [--ranks 2]

A batch is 32 groups of 16 completions of geometric lengths (mean 17, cut at 56) for a model of 4 layers of 256, in
micro-batches of 512 tokens. The settings take turns on each batch, so their ratio holds on a busy machine. The first
two steps are not counted. Ranks talk over gloo on one machine: this says what collectives and recomputing cost there,
not on a network, and nothing of memory.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from transformers import Qwen3Config, Qwen3ForCausalLM

from asyncrl.config.load import load
from asyncrl.learn.update.step import Learner
from asyncrl.types import Batch
from bench.pipeline.learner import KINDS, NUM_GROUPS, NUM_UNCOUNTED, random_group

CHECKPOINTED = "learner.gradient_checkpointing=true"
SETTINGS = {
    "nothing gathered": [],
    "keep_gathered=gradients": ["learner.keep_gathered=gradients"],
    "keep_gathered=all": ["learner.keep_gathered=all"],
    "checkpointed": [CHECKPOINTED],
    "checkpointed, attention kept": [CHECKPOINTED, "learner.checkpointing_keeps=attention"],
    "checkpointed, matmuls kept": [CHECKPOINTED, "learner.checkpointing_keeps=matmuls"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description="CPU seconds of a learner step by what stays gathered and kept.")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--ranks", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder))
        with ProcessPoolExecutor(arguments.ranks, mp_context=get_context("spawn")) as pool:
            ranks = range(arguments.ranks)
            futures = [pool.submit(measure, rank, arguments.ranks, folder, arguments.steps) for rank in ranks]
            seconds, *_ = [future.result() for future in futures]
    first = next(iter(seconds.values()))
    print(f"| {arguments.ranks} ranks | CPU s of rank 0 a step | ÷ the first |\n|---|---|---|")
    for name, value in seconds.items():
        print(f"| {name} | {value:.3f} | {value / first:.2f} |")


def save_model(folder: Path) -> None:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=512,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=128,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)


def measure(rank: int, num_ranks: int, folder: str, num_steps: int) -> dict[str, float]:
    """Setting → median CPU seconds of a step on this rank."""
    torch.set_num_threads(1)
    store = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=num_ranks, timeout=timedelta(minutes=5))
    mesh = init_device_mesh("cpu", (num_ranks,))
    common = [f"model.path={folder}", "generator.max_tokens=56", "learner.micro_batch_tokens=512"]
    configs = {name: load("configs/quickstart.yaml", [*common, *own]) for name, own in SETTINGS.items()}
    learners = {name: Learner(config, mesh, num_steps) for name, config in configs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in SETTINGS}
    rng = np.random.default_rng(0)
    for step in range(num_steps):
        groups = [random_group(rng, step, position, KINDS["long-tailed"]) for position in range(NUM_GROUPS)]
        for name, learner in learners.items():
            begun_s = time.process_time()
            learner.train(Batch(step=step, groups=groups))
            seconds[name].append(time.process_time() - begun_s)
    dist.destroy_process_group()
    return {name: statistics.median(values[NUM_UNCOUNTED:]) for name, values in seconds.items()}


if __name__ == "__main__":
    main()
