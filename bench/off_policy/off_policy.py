"""The lag study: forced lags × corrections × seeds on the quickstart's task, and what each reaches in the end.

    .venv/bin/python bench/off_policy/off_policy.py [--steps 300] [--seeds 5] [--workers 2] [--out FILE.jsonl]
        [--plot FILE.svg] [--rows FILE.jsonl]

A run is one line of FILE.jsonl; runs that stand there already are not made again, so it can be stopped and continued.
What it trains and samples with: lagged.py. The findings: docs/off_policy.md.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from asyncrl.data.arithmetic import arithmetic_rows, forget_carries
from asyncrl.errors import UserError
from bench.off_policy.report import Run, measurements, plot, table
from bench.support.rows import write_rows

LAGS = (0, 1, 4, 8, 16, 64)
WARMUP_STEPS = 600
HIDDEN_SIZE = 64
NO_CORRECTION = "algorithm.correction=none"

METHODS: dict[str, tuple[str, ...]] = {
    "none": ("algorithm.loss=reinforce", NO_CORRECTION),
    "token TIS": ("algorithm.loss=reinforce", "algorithm.correction=token_truncate"),
    "token mask": ("algorithm.loss=reinforce", "algorithm.correction=token_mask", "algorithm.correction_lower=0.5"),
    "sequence mask": (
        "algorithm.loss=reinforce",
        "algorithm.correction=sequence_mask",
        "algorithm.correction_lower=0.5",
    ),
    "IcePop": (
        "algorithm.loss=reinforce",
        "algorithm.correction=token_mask",
        "algorithm.correction_lower=0.5",
        "algorithm.correction_upper=5",
    ),
    "decoupled": (
        "algorithm.loss=decoupled_ppo",
        "algorithm.proximal=interpolate",
        "algorithm.correction=token_truncate",
    ),
    "CISPO": ("algorithm.loss=cispo", NO_CORRECTION, "algorithm.clip_lower=1", "algorithm.clip_upper=4"),
    "DPPO-TV": ("algorithm.loss=dppo_tv", NO_CORRECTION, "algorithm.clip_lower=0.2", "algorithm.clip_upper=0.2"),
    "staleness-aware": (
        "algorithm.loss=reinforce",
        "algorithm.correction=token_truncate",
        "algorithm.correction_lag_decay=0.9",
    ),
    "PPO clip + TIS": ("algorithm.loss=ppo_clip", "algorithm.correction=token_truncate"),
    "DPPO-TV, staleness-aware": (
        "algorithm.loss=dppo_tv",
        "algorithm.clip_lower=0.2",
        "algorithm.clip_upper=0.2",
        "algorithm.correction=token_truncate",
        "algorithm.correction_lag_decay=0.9",
    ),
}
"""Each as its paper or its system has it, bounds included; what is not said is the default."""


@dataclass(frozen=True)
class Job:
    """One run that is still to be made."""

    method: str
    lag: int
    seed: int
    num_steps: int
    lr: float
    models: Path

    @property
    def overrides(self) -> list[str]:
        return [
            *METHODS[self.method],
            f"replay.max_staleness={self.lag}",
            f"run.seed={self.seed}",
            f"learner.lr={self.lr}",
            "learner.batch_size=16",
            "learner.micro_batch_tokens=65536",
            "algorithm.group_size=8",
        ]


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    console = Console(width=140)  # a pipe has no width, and the table must not be folded
    try:
        runs = _all_runs(options, console)
    except UserError as error:
        console.print(f"error: {error}", markup=False)
        return 2
    console.print(table(runs))
    if options.plot is not None:
        plot(runs, options.plot)
    if options.rows is not None:
        write_rows(options.rows, "off_policy", measurements(runs))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="What each correction reaches at forced lags.")
    parser.add_argument("--steps", type=int, default=300, help="of each run (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=2e-4, help="learning rate (default: %(default)s)")
    parser.add_argument("--lags", type=int, nargs="+", default=LAGS, help="versions (default: %(default)s)")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS, metavar="METHOD")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/off_policy.jsonl"))
    parser.add_argument("--rows", type=Path, metavar="FILE.jsonl", help="writes each cell of the table as a row")
    parser.add_argument("--plot", type=Path, help="file for the plot, .svg or .png")
    return parser


def _all_runs(options: argparse.Namespace, console: Console) -> list[Run]:
    """Those of the file, and those that were missing, which are added to it one by one."""
    wanted = list(_grid(options))
    known = _read(options.out)
    made = {(run.method, run.lag, run.seed) for run in known}
    for run in known:
        if (run.num_steps, run.lr) != (options.steps, options.lr):
            raise UserError(f"{options.out} holds runs of {run.num_steps} steps at lr {run.lr}; give another --out")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    jobs = [job for job in wanted if (job.method, job.lag, job.seed) not in made]
    with options.out.open("a") as file:
        for run in _make(jobs, options.workers):
            file.write(json.dumps(asdict(run)) + "\n")
            file.flush()
            known.append(run)
            console.print(f"{len(known)}/{len(wanted)}  {run.method}, lag {run.lag}, seed {run.seed}: {run.final:.3f}")
    return known


def _grid(options: argparse.Namespace) -> Iterator[Job]:
    """Seed after seed, so that an unfinished study has all methods. At lag 0 they are all the same: one run stands."""
    models = options.out.parent / "off_policy_models"
    for seed in range(options.seeds):
        for lag in options.lags:
            for method in options.methods[: 1 if lag == 0 else None]:
                yield Job(method, lag, seed, options.steps, options.lr, models)


def _read(path: Path) -> list[Run]:
    return [Run(**json.loads(line)) for line in path.read_text().splitlines()] if path.is_file() else []


def _make(jobs: list[Job], num_workers: int) -> Iterator[Run]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, mp_context=context, initializer=start_ranks) as pool:
        futures: list[Future[Run]] = [pool.submit(_run, job) for job in jobs]
        for future in as_completed(futures):
            yield future.result()


def start_ranks() -> None:
    """A process group of one rank, which FSDP needs, for all runs of this process."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)


def tiny_model(job: Job) -> Path:
    """The seed's model, warmed up."""
    from asyncrl.data.tiny_model import build_tiny_model

    careless = forget_carries(arithmetic_rows("train", job.seed), job.seed)
    return build_tiny_model(job.models, careless, WARMUP_STEPS, job.seed, hidden_size=HIDDEN_SIZE)


def _run(job: Job) -> Run:
    from torch.distributed.device_mesh import init_device_mesh

    from asyncrl.config.load import load
    from bench.off_policy.lagged import LaggedRun

    config = load("configs/quickstart.yaml", [f"model.path={tiny_model(job)}", *job.overrides])
    run = LaggedRun(config, init_device_mesh("cpu", (1,)), job.num_steps)
    rewards, effective_sizes = [run.evaluate()], []
    for step in range(job.num_steps):
        size = run.step()["policy/effective_sample_size"]
        assert isinstance(size, float)
        effective_sizes.append(size)
        if (step + 1) % 25 == 0:
            rewards.append(run.evaluate())
    return Run(job.method, job.lag, job.seed, job.num_steps, job.lr, rewards, statistics.mean(effective_sizes))


if __name__ == "__main__":
    sys.exit(main())
