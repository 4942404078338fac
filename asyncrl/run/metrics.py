"""The numbers of a run: a row a step in metrics.jsonl, and the same in each tracker (`trackers/`).

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
from asyncrl.run.trackers.base import MetricValue, Tracker

Row = dict[str, Any]
"""One line of metrics.jsonl: `step`, and the figures."""

FILE_NAME = "metrics.jsonl"


class MetricsWriter:
    """Writes rows in the order of their steps. One process of a run has one."""

    def __init__(self, run_dir: Path, trackers: Sequence[Tracker] = (), resume_after: int | None = None) -> None:
        """Open `metrics.jsonl` for appending.

        Args:
            trackers: get each row too.
            resume_after: the step of the checkpoint that the run goes on from. Rows of later steps were written by a
                timeline that is gone: they are cut from the file.

        Raises:
            DataError: a row of the file to resume is broken.
        """
        path = run_dir / FILE_NAME
        if resume_after is not None and path.exists():
            truncate_after(path, resume_after)
        self.last_step = last_step(path)
        """The step of the last row in the file; −1 = none."""
        self._file = path.open("a", encoding="utf-8")
        self._trackers = trackers

    def write(self, step: int, metrics: Mapping[str, MetricValue]) -> None:
        """Append one row, on disk when this returns."""
        self._file.write(to_json({"step": step, **metrics}) + "\n")
        self._file.flush()
        for tracker in self._trackers:
            tracker.write(step, metrics)

    def write_table(self, step: int, key: str, markdown: str) -> None:
        """A Markdown text, for the trackers alone."""
        for tracker in self._trackers:
            tracker.write(step, {key: markdown})

    def close(self) -> None:
        self._file.close()
        for tracker in self._trackers:
            tracker.close()


def to_json(row: Row) -> str:
    """One line, without its end; NaN and ±∞ are null."""
    finite = {key: _finite(value) for key, value in row.items()}
    return json.dumps(finite, ensure_ascii=False, allow_nan=False)


def read_rows(run_dir: Path) -> list[Row]:
    """The rows of a run, which may be live; none before its first step."""
    # A row that is being written has no end of line yet.
    return [json.loads(line) for line in _lines(run_dir / FILE_NAME) if line.endswith(b"\n")]


def last_step(path: Path) -> int:
    """The last step of a metrics file whose lines are all whole; −1 when it is empty or missing."""
    lines = _lines(path)
    return int(json.loads(lines[-1])["step"]) if lines else -1


def truncate_after(path: Path, step: int) -> None:
    """Cut the rows of later steps from a metrics file; also a half-written last line, left by a killed process.

    Raises:
        DataError: another line is no row; names file and line.
    """
    lines = _lines(path)
    kept = []
    for number, line in enumerate(lines, start=1):
        try:
            row_step = json.loads(line)["step"]
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                break
            raise DataError(f"{path}:{number} is not a row of metrics; mend or move the file, then resume") from error
        if row_step <= step:
            kept.append(line)
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(b"".join(kept))
    os.replace(temporary, path)


def _lines(path: Path) -> list[bytes]:
    """With their ends; none when there is no file. As bytes, where JSON escapes every end of line: as text, a row may
    hold others, such as U+2028, and the file may end in half a character."""
    return path.read_bytes().splitlines(keepends=True) if path.is_file() else []


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(count) for count in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
