"""`asyncrl.Run`: what a run directory holds, as tables. The run may be live."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pyarrow

from asyncrl.config.load import load
from asyncrl.config.schema import Config
from asyncrl.errors import DataError
from asyncrl.run.directory import ledger_file
from asyncrl.run.metrics import read_rows
from asyncrl.run.trainer_state import checkpoints, read_state


class Run:
    """One run directory. Tables are pyarrow's: `table.to_pandas()` makes a data frame where pandas is installed.

    Raises:
        DataError: the folder is no run directory.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        if not (self.directory / "config.yaml").is_file():
            raise DataError(f"{directory} is no run directory: it has no config.yaml")

    def __repr__(self) -> str:
        return f"Run({str(self.directory)!r})"

    @property
    def config(self) -> Config:
        return load(self.directory / "config.yaml")

    def metrics(self) -> pyarrow.Table:
        """A row a step, by step; null where a step has no such figure. docs/metrics.md explains each column."""
        rows = read_rows(self.directory)
        names = dict.fromkeys(["step", *(name for row in rows for name in row)])
        return pyarrow.table({name: [row.get(name) for row in rows] for name in names})

    def prompts(self) -> pyarrow.Table:
        """A row for each prompt that was drawn, by admission index: the table `prompts` of `ledger/store.py`.

        Raises:
            DataError: the run has no ledger yet.
        """
        file = ledger_file(self.directory)
        if not file.is_file():
            raise DataError(f"{self.directory} has no {file.name}: the run has not begun")
        with closing(sqlite3.connect(file)) as db:
            cursor = db.execute("SELECT * FROM prompts ORDER BY idx")
            names = [column[0] for column in cursor.description]
            rows = cursor.fetchall()
        return pyarrow.table({name: [row[position] for row in rows] for position, name in enumerate(names)})

    def checkpoints(self) -> pyarrow.Table:
        """`step` (int), `update` (int), `path` (text) of each whole checkpoint, by step."""
        found = [(read_state(path), str(path)) for path in checkpoints(self.directory)]
        return pyarrow.table(
            {
                "step": pyarrow.array([state.step for state, _ in found], pyarrow.int64()),
                "update": pyarrow.array([state.update for state, _ in found], pyarrow.int64()),
                "path": pyarrow.array([path for _, path in found], pyarrow.string()),
            }
        )
