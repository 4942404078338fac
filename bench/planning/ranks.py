"""The ranks of an emulated learner: processes that get each batch as real ranks do, sleep, and wait for each other.

Rank 0 is the caller. The others are processes of their own, which end when rank 0 tells them to stop.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from asyncrl.learn.batch_broadcast import broadcast_batch
from asyncrl.simulate.timings import Timings
from asyncrl.transport.messages.learning import BatchReply
from asyncrl.transport.wire import Frame
from asyncrl.types import Batch

DEADLINE_S = 180.0
"""Of a rank's wait for the others; rank 0 may wait for replay meanwhile."""


class Ranks:
    """Ready when the constructor returns. Rank 0's end of a gloo group over the default process group."""

    def __init__(self, num_ranks: int, timings: Timings) -> None:
        self._num_ranks = num_ranks
        self._timings = timings
        self._folder = tempfile.TemporaryDirectory(prefix="asyncrl-bench-")
        store_file = Path(self._folder.name) / "store"
        context = multiprocessing.get_context("spawn")
        self._others = [
            context.Process(target=_serve, args=(store_file, rank, num_ranks, timings)) for rank in range(1, num_ranks)
        ]
        for process in self._others:
            process.start()
        _join(store_file, 0, num_ranks)

    def train(self, reply: BatchReply, frames: Sequence[Frame]) -> Batch:
        """A step of all ranks on the batch that replay has sent."""
        batch = broadcast_batch((reply, frames))
        assert batch is not None
        _train(batch, self._timings, self._num_ranks)
        return batch

    def close(self) -> None:
        broadcast_batch(None)
        dist.destroy_process_group()
        for process in self._others:
            process.join(DEADLINE_S)
        self._folder.cleanup()


def _serve(store_file: Path, rank: int, num_ranks: int, timings: Timings) -> None:
    torch.set_num_threads(1)
    _join(store_file, rank, num_ranks)
    while batch := broadcast_batch(None):
        _train(batch, timings, num_ranks)
    dist.destroy_process_group()


def _join(store_file: Path, rank: int, num_ranks: int) -> None:
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store_file}",
        rank=rank,
        world_size=num_ranks,
        timeout=timedelta(seconds=DEADLINE_S),
    )


def _train(batch: Batch, timings: Timings, num_ranks: int) -> None:
    """Ranks wait for each other where they would reduce gradients."""
    num_tokens = sum(int(each.lengths.sum()) + each.size * len(each.prompt_token_ids) for each in batch.groups)
    time.sleep(timings.train_base_s + timings.train_per_token_s * num_tokens / num_ranks)
    dist.all_reduce(torch.zeros(1))
