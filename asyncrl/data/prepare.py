"""`asyncrl prepare`: data sets as train.parquet and test.parquet with the columns `prompt` and `answer`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pyarrow
import pyarrow.parquet

from asyncrl.data.arithmetic import arithmetic_rows
from asyncrl.data.other_trainers import read_foreign
from asyncrl.data.rows import Columns, read_rows
from asyncrl.data.smollm2 import make_smollm2, sum_rows
from asyncrl.data.splits import Split, split_files
from asyncrl.errors import DataError, UserError

GSM8K_INSTRUCTION = 'Let\'s think step by step and output the final answer after "####".'
"""verl's GSM8K recipe appends the same words."""

_SPLITS: tuple[Split, ...] = ("train", "test")

_Rows = list[tuple[str, str]]


def prepare_gsm8k(source: str, out: Path) -> dict[str, int]:
    """Writes GSM8K to `out`; prompt = question + instruction, answer = the whole solution, ending in `#### N`.

    Args:
        source: a folder with train and test (.jsonl or .parquet; columns question, answer), or a hub name such as
            openai/gsm8k, which needs the `hub` extra.
        out: the folder to write to.

    Returns:
        Number of rows by split.

    Raises:
        DataError: a bad row, by file and line, or a source that is no folder and cannot be loaded from the hub.
        UserError: files that exist in `out` already.
    """
    _refuse_existing(out)
    folder = Path(source)
    splits = _gsm8k_from_folder(folder) if folder.is_dir() else _gsm8k_from_hub(source)
    instructed = {
        split: [(f"{question} {GSM8K_INSTRUCTION}", answer) for question, answer in rows]
        for split, rows in splits.items()
    }
    return _write_splits(out, {split: _table(rows) for split, rows in instructed.items()})


def prepare_foreign(layout: str, source: Path, out: Path) -> dict[str, int]:
    """Writes a data set of another trainer to `out` and returns the number of rows by split.

    Args:
        layout: verl or trl (`other_trainers.py`).
        source: a file, or a folder with train and test.

    Raises:
        DataError: a bad row, by file and line, or columns whose types differ from row to row.
        UserError: files that exist in `out` already.
    """
    _refuse_existing(out)
    tables = {}
    for split, records in read_foreign(layout, source).items():
        try:
            tables[split] = pyarrow.Table.from_pylist(records)
        except pyarrow.ArrowException as error:
            raise DataError(f"{source}: a column's values have different types in different rows: {error}") from error
        if not records:
            raise DataError(f"{source} has no rows")
    return _write_splits(out, tables)


def prepare_arithmetic(out: Path, seed: int) -> dict[str, int]:
    """Writes the quickstart's addition task to `out` and returns the number of rows by split.

    Raises:
        UserError: files that exist in `out` already.
    """
    _refuse_existing(out)
    return _write_splits(out, {split: _table(arithmetic_rows(split, seed)) for split in _SPLITS})


def prepare_smollm2(out: Path, seed: int) -> dict[str, int]:
    """Writes SmolLM2-135M-Instruct to `out`/model and sums for it beside; returns the number of rows by split.

    Raises:
        UserError, DataError: files that exist in `out` already; as `make_smollm2`.
    """
    _refuse_existing(out)
    make_smollm2(out / "model")
    return _write_splits(out, {split: pyarrow.Table.from_pylist(rows) for split, rows in sum_rows(seed).items()})


def _gsm8k_from_folder(folder: Path) -> dict[Split, _Rows]:
    columns = Columns("question", "answer", hint="GSM8K's own columns are expected")
    splits = {split: read_rows(split_files(folder, split), columns) for split in _SPLITS}
    for rows in splits.values():
        for row in rows:
            _require_final_answer(row.place, row.answer)
    return {split: [(row.prompt, row.answer) for row in rows] for split, rows in splits.items()}


def _gsm8k_from_hub(name: str) -> dict[Split, _Rows]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise DataError(
            f"{name} is no folder, and to read it from the hub the package `datasets` is needed: "
            "pip install 'asyncrl[hub]'"
        ) from error
    try:
        loaded = load_dataset(name, "main")
        splits = {split: [(row["question"], row["answer"]) for row in loaded[split]] for split in _SPLITS}
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{name} is no folder and cannot be loaded from the hub as GSM8K: {error}") from error
    for split, rows in splits.items():
        for number, (_, answer) in enumerate(rows):
            _require_final_answer(f"{name}, {split}:{number}", answer)
    return splits


def _require_final_answer(place: str, answer: str) -> None:
    if "####" not in answer:
        raise DataError(f"{place}: 'answer' has no final answer after ####")


def _refuse_existing(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; --out names a folder")
    existing = [str(out / f"{split}.parquet") for split in _SPLITS if (out / f"{split}.parquet").exists()]
    if existing:
        raise UserError(f"{' and '.join(existing)} exist(s) already; remove or choose another --out")


def _table(rows: _Rows) -> pyarrow.Table:
    return pyarrow.table({"prompt": [prompt for prompt, _ in rows], "answer": [answer for _, answer in rows]})


def _write_splits(out: Path, tables: Mapping[Split, pyarrow.Table]) -> dict[str, int]:
    """Writes every split beside its final name first, so that an interruption leaves no half-written file under it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for split, table in tables.items():
            pyarrow.parquet.write_table(table, out / f".{split}.parquet.partial")
        for split in tables:
            os.replace(out / f".{split}.parquet.partial", out / f"{split}.parquet")
    except OSError as error:
        raise UserError(f"--out {out}: cannot write there: {error.strerror or error}") from error
    return {split: table.num_rows for split, table in tables.items()}
