"""The learner's step beside that of TRL's GRPOTrainer: CPU seconds on one core, on the same batches, in turn.

    .venv/bin/python -m bench learner_beside_trl --python trl/bin/python [--steps 12] [--at-once 512 128 32]
                                                 [--out FILE.jsonl]

`--python` is of an environment with trl, as for `beside_trl.py`. Model, batches and lengths are those of
`bench/pipeline/learner.py`. The first two steps of each kind of lengths are not counted.

TRL's step is all between its trainer's on_step_begin and on_step_end but generation and reward functions: padding,
advantages, forward, loss, backward, clipping, AdamW, its metrics. Its data loader is not in it, nor is replay in
asyncrl's. Only `_generate` is replaced: it reads token ids from a file. Both sides have float32, fused AdamW, the same
learning rate and clipping, no KL, no gradient checkpointing and one thread. TRL has its own loss, scaled-dot-product
attention and padding to the longest completion of the batch; it needs no pass for old logprobs, as each batch is
trained once. How many sequences it takes at once is its users' choice, so there is a trainer for each size, all in
turn, and the fastest counts for each kind of lengths. asyncrl has the environment of a run's learner, which keeps freed
memory. TRL is without those variables, as they make it slower.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch.distributed.device_mesh import init_device_mesh

from asyncrl.config.schema import Config
from asyncrl.learn.update.step import Learner
from asyncrl.types import Batch
from bench.pipeline.learner import (
    GROUP_SIZE,
    KINDS,
    NUM_GROUPS,
    NUM_UNCOUNTED,
    Lengths,
    as_a_learner,
    one_rank,
    random_batch,
)
from bench.support.rows import Measurement, write_rows

ALLOCATOR = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "THP_MEM_ALLOC_ENABLE")
"""Variables of a learner's environment that TRL is faster without."""


class TrlLearner:
    """A process in TRL's environment that trains when it is asked to.

    Args:
        python: of that environment.
        folder: for its files; made here.
        num_steps: how often it will be asked.
        at_once: sequences of a forward pass; divides the batch's.
    """

    def __init__(self, python: str, folder: Path, config: Config, num_steps: int, at_once: int) -> None:
        folder.mkdir()
        task = {
            "model": config.model.path,
            "folder": str(folder),
            "num_steps": num_steps,
            "num_groups": NUM_GROUPS,
            "group_size": GROUP_SIZE,
            "at_once": at_once,
            "max_tokens": config.generator.max_tokens,
            "lr": config.learner.lr,
            "lr_warmup_steps": config.learner.warmup_steps,
            "max_grad_norm": config.learner.max_grad_norm,
        }
        file = folder / "task.json"
        file.write_text(json.dumps(task))
        self._log = folder / "log.txt"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [python, str(Path(__file__).with_name("trl_learner.py")), str(file)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={name: value for name, value in os.environ.items() if name not in ALLOCATOR},
                text=True,
            )

    def step_s(self, batch: Path) -> float:
        """CPU seconds of a step on a batch that `write` wrote."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{batch}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            last_lines = "\n".join(self._log.read_text().splitlines()[-30:])
            raise SystemExit(f"TRL ended with exit code {self._process.wait()}:\n{last_lines}")
        return float(answer)

    def wait(self) -> None:
        """Until it has ended, which it does by itself after its last step."""
        self._process.communicate()


def write(batch: Batch, file: Path) -> None:
    """For `trl_learner.py`: sequences behind one another, with their lengths."""
    groups = batch.groups
    np.savez(
        file,
        prompts=np.concatenate([group.prompt_token_ids for group in groups]),
        prompt_lengths=np.array([len(group.prompt_token_ids) for group in groups]),
        tokens=np.concatenate([group.tokens for group in groups]),
        lengths=np.concatenate([group.lengths for group in groups]),
        rewards=np.concatenate([group.rewards for group in groups]),
    )


class Compared(NamedTuple):
    """Median CPU seconds of a step."""

    asyncrl_s: float
    trl_s: dict[int, float]
    """By how many sequences it takes at once."""

    @property
    def trl_best(self) -> int:
        """The size with which TRL is fastest."""
        return min(self.trl_s, key=self.trl_s.__getitem__)

    @property
    def over_trl(self) -> float:
        return self.asyncrl_s / self.trl_s[self.trl_best]


def measure(config: Config, peers: dict[int, TrlLearner], lengths: Lengths, num_steps: int, file: Path) -> Compared:
    """All in turn, on each batch."""
    learner = Learner(config, init_device_mesh("cpu", (1,)), num_steps)
    own_s: list[float] = []
    trl_s: dict[int, list[float]] = {at_once: [] for at_once in peers}
    rng = np.random.default_rng(0)
    for step in range(num_steps):
        batch = random_batch(rng, step, lengths)
        write(batch, file)
        begun_s = time.process_time()
        learner.train(batch)
        own_s.append(time.process_time() - begun_s)
        for at_once, peer in peers.items():
            trl_s[at_once].append(peer.step_s(file))
    return Compared(_median(own_s), {at_once: _median(values) for at_once, values in trl_s.items()})


def _median(values_s: list[float]) -> float:
    return statistics.median(values_s[NUM_UNCOUNTED:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="of an environment with trl")
    parser.add_argument("--steps", type=int, default=12, help="of each kind of lengths")
    parser.add_argument("--at-once", type=int, nargs="+", default=[512, 128, 32], help="sequences that TRL takes")
    parser.add_argument("--out", type=Path, metavar="FILE.jsonl", help="writes each figure as a row")
    arguments = parser.parse_args()
    as_a_learner()
    print("| lengths | asyncrl, CPU s | TRL, CPU s | asyncrl ÷ TRL | TRL by sequences at once |\n|---|---|---|---|---|")
    rows: list[Measurement] = []
    with tempfile.TemporaryDirectory() as folder, one_rank() as config:
        num_steps = arguments.steps * len(KINDS)
        peers = {
            at_once: TrlLearner(arguments.python, Path(folder) / str(at_once), config, num_steps, at_once)
            for at_once in arguments.at_once
        }
        for kind, lengths in KINDS.items():
            compared = measure(config, peers, lengths, arguments.steps, Path(folder) / "batch.npz")
            by_size = ", ".join(f"{at_once}: {seconds:.3f}" for at_once, seconds in compared.trl_s.items())
            figures = f"{compared.asyncrl_s:.3f} | {compared.trl_s[compared.trl_best]:.3f} | {compared.over_trl:.2f}"
            print(f"| {kind} | {figures} | {by_size} |", flush=True)
            rows.append(Measurement(f"{kind}: cpu_s", [compared.asyncrl_s], "less"))
            rows.append(Measurement(f"{kind}: cpu_s_over_trl", [compared.over_trl], "less"))
        for peer in peers.values():
            peer.wait()
    if arguments.out is not None:
        write_rows(arguments.out, "learner_beside_trl", rows)


if __name__ == "__main__":
    main()
