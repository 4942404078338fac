"""What loading a model costs in host memory, over all learner ranks of one machine.

    .venv/bin/python bench/pipeline/load_memory.py [--ranks 4] [--layers 30] [--dtype float32] [--out FILE.jsonl]

The model is a random Qwen3 of 2 GB (its float32 master weights), made on the spot. `sharded` is the learner's own load,
`whole` what it did before: each rank reads the model with `from_pretrained`, then FSDP cuts it. Every 10 ms the parent
adds up over the ranks what they hold beyond what they held before loading: PSS (a page shared by k processes counts 1/k
for each, pages of mapped files included) and their own anonymous pages.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.synchronize import Barrier, Semaphore
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM

from asyncrl.config.schema import ModelConfig
from asyncrl.learn.policy.model import load_policy
from bench.support.generators import PRELOAD
from bench.support.models import qwen3_config, save_model
from bench.support.rows import Measurement, write_rows

FIELDS = {"Pss": "pss", "Anonymous": "anonymous"}
TIMEOUT_S = 300.0
CONTEXT = multiprocessing.get_context("forkserver")  # one process imports, the ranks are its forks
CONTEXT.set_forkserver_preload(PRELOAD)


def main() -> None:
    parser = argparse.ArgumentParser(description="Host memory of loading a model, over all learner ranks.")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--layers", type=int, default=30, help="30 are 2.0 GB in float32")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the files")
    parser.add_argument("--out", type=Path, metavar="FILE.jsonl", help="writes each figure as a row")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model_bytes = make_model(Path(folder) / "model", arguments.layers, getattr(torch, arguments.dtype))
        figures: dict[str, dict[str, Any]] = {}
        for name in LOADS:
            figures[name] = measure(name, Path(folder), arguments.ranks)
            peaks = "  ".join(
                f"{field}: peak {figures[name][field]['peak'] / model_bytes:.2f} × the model, "
                f"after loading {figures[name][field]['after'] / model_bytes:.2f} ×"
                for field in FIELDS.values()
            )
            print(f"{name:8} {figures[name]['seconds']:6.1f} s   {peaks}")
    if arguments.out:
        peaks_of = {name: figures[name]["pss"]["peak"] / model_bytes for name in LOADS}
        rows = [Measurement(f"{name}: peak PSS, models", [peak], "less") for name, peak in peaks_of.items()]
        write_rows(arguments.out, "load_memory", rows)


def make_model(folder: Path, num_layers: int, dtype: torch.dtype) -> int:
    """Bytes of its parameters in float32."""
    config = qwen3_config(num_layers, vocab_size=32000)
    process = CONTEXT.Process(target=save_model, args=(config, dtype, folder))
    process.start()
    process.join()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return 4 * sum(parameter.numel() for parameter in model.parameters())


def measure(name: str, folder: Path, num_ranks: int) -> dict[str, Any]:
    """Peak and final bytes over all ranks, beyond the start's."""
    barrier, loaded = CONTEXT.Barrier(num_ranks + 1), CONTEXT.Semaphore(0)
    ranks = [
        CONTEXT.Process(target=load, args=(name, rank, num_ranks, folder, barrier, loaded), daemon=True)
        for rank in range(num_ranks)
    ]
    for process in ranks:
        process.start()
    pids = [process.pid for process in ranks]
    barrier.wait(TIMEOUT_S)
    before = held(pids)
    barrier.wait(TIMEOUT_S)
    start_s, peak = time.perf_counter(), dict(before)
    while loaded.get_value() < num_ranks:
        now = held(pids)
        peak = {field: max(value, now[field]) for field, value in peak.items()}
        time.sleep(0.01)
        if time.perf_counter() - start_s > TIMEOUT_S or not all(process.is_alive() for process in ranks):
            raise SystemExit(f"{name}: a rank failed, or did not load within {TIMEOUT_S:.0f} s")
    seconds, after = time.perf_counter() - start_s, held(pids)
    barrier.wait(TIMEOUT_S)
    for process in ranks:
        process.join(TIMEOUT_S)
    figures = {field: {"peak": peak[field] - before[field], "after": after[field] - before[field]} for field in peak}
    return {**figures, "seconds": seconds}


def held(pids: list[int | None]) -> dict[str, int]:
    """Bytes of the processes together, by field."""
    total = dict.fromkeys(FIELDS.values(), 0)
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in FIELDS:
                total[FIELDS[name]] += 1024 * int(value.split()[0])
    return total


def load(name: str, rank: int, num_ranks: int, folder: Path, barrier: Barrier, loaded: Semaphore) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / f"store_{name}"), num_ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=num_ranks, timeout=timedelta(seconds=TIMEOUT_S))
    mesh = init_device_mesh("cpu", (num_ranks,))
    barrier.wait(TIMEOUT_S)
    barrier.wait(TIMEOUT_S)
    model = LOADS[name](str(folder / "model"), mesh)
    loaded.release()
    barrier.wait(TIMEOUT_S)
    del model
    dist.destroy_process_group()


def load_sharded(path: str, mesh: DeviceMesh) -> torch.nn.Module:
    return load_policy(ModelConfig(path=path), mesh)


def load_whole(path: str, mesh: DeviceMesh) -> torch.nn.Module:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    for layer in model.get_decoder().layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


LOADS: dict[str, Callable[[str, DeviceMesh], torch.nn.Module]] = {"sharded": load_sharded, "whole": load_whole}


if __name__ == "__main__":
    main()
