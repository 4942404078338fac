"""Where a run stands, read from trainer.json in its checkpoints. Needs no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from asyncrl.errors import DataError
from asyncrl.run.metrics import Row

FORMAT = 1
"""Raised when the layout of a checkpoint changes."""

ROWS_FILE = "rows.jsonl"


@dataclass(frozen=True)
class TrainerState:
    """Where the learner stands. The learning rate is a function of `update`, so the schedule has no state of its own;
    the prompts are in the run's ledger."""

    step: int = 0
    """Steps done = the version of the saved policy."""
    update: int = 0
    """Optimizer updates done."""
    entropy_coef: float | None = None
    """Coefficient of the entropy bonus, where algorithm.entropy_target moves it."""
    entropy_is_low: bool = True
    """Whether the bonus acts in the next step."""


def checkpoint_dir(run_dir: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps belongs."""
    return run_dir / "checkpoints" / f"step_{step:06d}"


def checkpoints(run_dir: Path) -> list[Path]:
    """The whole checkpoints of a run, by step."""
    return sorted((run_dir / "checkpoints").glob("step_*"), key=lambda path: int(path.name.removeprefix("step_")))


def latest(run_dir: Path) -> Path | None:
    """The whole checkpoint with the most steps, or None."""
    found = checkpoints(run_dir)
    return found[-1] if found else None


def saved_rows(run_dir: Path, after: int, up_to: int) -> list[Row]:
    """The rows of the steps after < step ≤ up_to that the run's checkpoints contain, in order of the steps."""
    rows: dict[int, Row] = {}
    for file in (run_dir / "checkpoints").glob(f"step_*/{ROWS_FILE}"):
        for line in file.read_bytes().splitlines():  # text in it may hold ends of line of its own, such as U+2028
            row = json.loads(line)
            if after < row["step"] <= up_to:
                rows[row["step"]] = row
    return [rows[step] for step in sorted(rows)]


def read_state(directory: Path) -> TrainerState:
    """The state of one checkpoint.

    Raises:
        DataError: no checkpoint, or one of another format.
    """
    path = directory / "trainer.json"
    if not path.is_file():
        raise DataError(f"{directory} is no checkpoint: it has no trainer.json")
    values = json.loads(path.read_text())
    if values.pop("format") != FORMAT:
        raise DataError(f"{path}: the checkpoint was written by another version of asyncrl")
    return TrainerState(**values)
