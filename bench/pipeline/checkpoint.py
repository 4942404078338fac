"""What a step waits for a checkpoint: written at once, and copied to be written while training goes on.

    .venv/bin/python bench/pipeline/checkpoint.py [--layers 12] [--repeats 3] [--out FILE.jsonl]

One rank on one core, a random Qwen3 whose parameters and moments are 0.6 GB. The two take turns, each into a folder of
its own.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from transformers import AutoModelForCausalLM, Qwen3Config

from asyncrl.config.load import load
from asyncrl.learn.checkpoint import save
from asyncrl.learn.checkpoint_writer import CheckpointWriter
from asyncrl.learn.update.step import Learner
from asyncrl.run.trainer_state import TrainerState
from bench.support.rows import Measurement, write_rows

TIMEOUT_S = 300.0


def main() -> None:
    parser = argparse.ArgumentParser(description="What a step waits for a checkpoint.")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, metavar="FILE.jsonl", help="writes each figure as a row")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        learner = make_learner(Path(folder), arguments.layers)
        writer, figures = CheckpointWriter(TIMEOUT_S), {"at once": [], "copied": [], "whole after": []}  # type: ignore[var-annotated]
        for repeat in range(arguments.repeats):
            start_s = time.perf_counter()
            save(Path(folder) / "at_once" / f"{repeat}", learner, TrainerState(repeat))
            figures["at once"].append(time.perf_counter() - start_s)
            start_s = time.perf_counter()
            writer.begin(Path(folder) / "copied" / f"{repeat}", learner, TrainerState(repeat), [])
            figures["copied"].append(time.perf_counter() - start_s)
            writer.wait()
            figures["whole after"].append(time.perf_counter() - start_s)
        dist.destroy_process_group()
    for name, seconds in figures.items():
        print(f"{name:12} {statistics.median(seconds):.2f} s ({min(seconds):.2f} – {max(seconds):.2f})")
    if arguments.out:
        rows = [Measurement(f"{name}, s", seconds, "less") for name, seconds in figures.items()]
        write_rows(arguments.out, "checkpoint", rows)


def make_learner(folder: Path, num_layers: int) -> Learner:
    config = Qwen3Config(
        vocab_size=16000,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=num_layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        tie_word_embeddings=True,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model")
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=0, world_size=1)
    learner = Learner(load(None, [f"model.path={folder}/model", "data.train=none"]), init_device_mesh("cpu", (1,)), 1)
    for parameter in learner.policy.parameters():
        parameter.grad = torch.zeros_like(parameter)
    learner.optimizer.step()  # its state is in the checkpoint
    return learner


if __name__ == "__main__":
    main()
