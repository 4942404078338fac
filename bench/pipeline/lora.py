"""What an adapter reaches, and what a version of it weighs, against training every weight: through `asyncrl launch`.

    nice .venv/bin/python bench/pipeline/lora.py [--seeds 0 1 2] [--only NAME ...] [--keep DIR] [key=value ...]

One run after another, each the quickstart with another seed. There are 256 held-out sums, so one standard error of an
accuracy is about 1.6 points.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from rich.console import Console
from rich.table import Table

TIMEOUT_S = 3600.0
ATTENTION = "lora.targets=[q_proj,k_proj,v_proj,o_proj]"
LORA_LR = "learner.lr=3e-3"
VARIANTS = {
    "every weight": [],
    "rank 8, all linear layers": ["lora.rank=8", LORA_LR],
    "rank 8, all linear layers, sent in bfloat16": ["lora.rank=8", LORA_LR, "lora.publish_dtype=bfloat16"],
    "rank 8, attention": ["lora.rank=8", ATTENTION, LORA_LR],
    "rank 8, up and down": ["lora.rank=8", "lora.targets=[up_proj,down_proj]", "learner.lr=5e-3"],
    "rank 4, all linear layers": ["lora.rank=4", "learner.lr=5e-3"],
}


@dataclass(frozen=True)
class Outcome:
    """Of one run."""

    first_accuracy: float
    last_accuracy: float
    version_bytes: float
    """Of the last version, to one generator."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--keep", type=Path, help="a folder for the runs; else they are removed")
    arguments, overrides = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = arguments.keep or Path(folder)
        outcomes = {
            name: [
                _run(runs / f"{name.replace(' ', '_')}_{seed}", seed, VARIANTS[name] + overrides)
                for seed in arguments.seeds
            ]
            for name in arguments.only
        }
    _print(outcomes, arguments.seeds)


def _run(run_dir: Path, seed: int, overrides: list[str]) -> Outcome:
    asyncrl = str(Path(sys.executable).with_name("asyncrl"))
    command = [asyncrl, "launch", "--run-dir", str(run_dir), f"run.seed={seed}", *overrides]
    subprocess.run(
        command, check=True, timeout=TIMEOUT_S, stdout=sys.stderr, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    accuracies = [row["eval/accuracy"] for row in rows if row.get("eval/accuracy") is not None]
    return Outcome(
        accuracies[0], accuracies[-1], next(row["publish/bytes"] for row in reversed(rows) if "publish/bytes" in row)
    )


def _print(outcomes: dict[str, list[Outcome]], seeds: list[int]) -> None:
    table = Table("trained", *(f"seed {seed}" for seed in seeds), "mean", "bytes of a version")
    for name, of_seeds in outcomes.items():
        accuracies = [outcome.last_accuracy for outcome in of_seeds]
        cells = [f"{outcome.first_accuracy:.1%} → {outcome.last_accuracy:.1%}" for outcome in of_seeds]
        table.add_row(name, *cells, f"{mean(accuracies):.1%}", f"{of_seeds[-1].version_bytes:,.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
