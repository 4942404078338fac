"""The numbers of a run: a row a step in metrics.jsonl, and the same in TensorBoard.

Keys are `family/name`, such as `reward/mean`. A value is

    a number          a scalar; NaN and ±∞ are null in the row and left out of TensorBoard
    a list of counts  a histogram: the i-th is how often the value i was seen (`staleness/histogram`: tokens by lag)
    text              for people, such as a sampled completion
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from asyncrl.errors import DataError
from asyncrl.run.plain_text import plain

MetricValue = float | str | list[int] | list[float]
Row = dict[str, Any]
"""One line of metrics.jsonl: `step`, and the figures."""

FILE_NAME = "metrics.jsonl"


class MetricsWriter:
    """Writes rows in the order of their steps. One process of a run has one."""

    def __init__(self, run_dir: Path, resume_after: int | None = None) -> None:
        """Open both files for appending.

        Args:
            run_dir: gets `metrics.jsonl` and `tensorboard/`.
            resume_after: the step of the checkpoint that the run goes on from. Rows of later steps were written by a
                timeline that is gone: they are cut from the file and hidden in TensorBoard.

        Raises:
            DataError: a row of the file to resume is broken.
        """
        from torch.utils.tensorboard import SummaryWriter  # loads torch, which the readers of this module do without

        path = run_dir / FILE_NAME
        if resume_after is not None and path.exists():
            truncate_after(path, resume_after)
        self.last_step = last_step(path)
        """The step of the last row in the file; −1 = none."""
        self._file = path.open("a", encoding="utf-8")
        purge_step = None if resume_after is None else resume_after + 1
        self._tensorboard: Any = SummaryWriter(str(run_dir / "tensorboard"), purge_step=purge_step)

    def write(self, step: int, metrics: Mapping[str, MetricValue]) -> None:
        """Append one row, on disk when this returns."""
        for key, value in metrics.items():
            if isinstance(value, str):
                self._tensorboard.add_text(key, plain(value).replace("\n", "  \n"), step)  # Markdown's line break
            elif isinstance(value, list):
                self._add_histogram(key, value, step)
            elif math.isfinite(value):
                self._tensorboard.add_scalar(key, value, step)
        self._file.write(to_json({"step": step, **metrics}) + "\n")
        self._file.flush()
        self._tensorboard.flush()

    def write_table(self, step: int, key: str, markdown: str) -> None:
        """A Markdown text, in TensorBoard alone."""
        self._tensorboard.add_text(key, markdown, step)

    def close(self) -> None:
        self._file.close()
        self._tensorboard.close()

    def _add_histogram(self, key: str, counts: Sequence[float], step: int) -> None:
        total = sum(counts)
        if total == 0:
            return
        self._tensorboard.add_histogram_raw(
            key,
            min=0,
            max=len(counts) - 1,
            num=total,
            sum=sum(value * count for value, count in enumerate(counts)),
            sum_squares=sum(value**2 * count for value, count in enumerate(counts)),
            bucket_limits=[value + 0.5 for value in range(len(counts))],
            bucket_counts=list(counts),
            global_step=step,
        )


def to_json(row: Row) -> str:
    """One line, without its end; NaN and ±∞ are null."""
    finite = {key: _finite(value) for key, value in row.items()}
    return json.dumps(finite, ensure_ascii=False, allow_nan=False)


def read_rows(run_dir: Path) -> list[Row]:
    """The rows of a run, which may be live; none before its first step."""
    path = run_dir / FILE_NAME
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    # A row that is being written has no end of line yet.
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def last_step(path: Path) -> int:
    """The last step of a metrics file whose lines are all whole; −1 when it is empty or missing."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return int(json.loads(lines[-1])["step"]) if lines else -1


def truncate_after(path: Path, step: int) -> None:
    """Cut the rows of later steps from a metrics file; also a half-written last line, left by a killed process.

    Raises:
        DataError: another line is no row; names file and line.
    """
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = []
    for number, line in enumerate(lines, start=1):
        try:
            row_step = json.loads(line)["step"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            if number == len(lines):
                break
            raise DataError(f"{path}:{number} is not a row of metrics; mend or move the file, then resume") from error
        if row_step <= step:
            kept.append(line)
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    os.replace(temporary, path)


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(count) for count in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
