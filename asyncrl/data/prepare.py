"""`asyncrl prepare`: data sets as train.parquet and test.parquet with the columns `prompt` and `answer`."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow
import pyarrow.parquet

from asyncrl.data.arithmetic import arithmetic_rows
from asyncrl.data.read import read_rows, resolve_split
from asyncrl.errors import DataError, UserError

GSM8K_INSTRUCTION = 'Let\'s think step by step and output the final answer after "####".'
"""verl's GSM8K recipe appends the same words."""

_SPLITS = ("train", "test")

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
    return _write_splits(out, instructed)


def prepare_arithmetic(out: Path, seed: int) -> dict[str, int]:
    """Writes the quickstart's addition task to `out` and returns the number of rows by split.

    Raises:
        UserError: files that exist in `out` already.
    """
    _refuse_existing(out)
    return _write_splits(out, {"train": arithmetic_rows("train", seed), "test": arithmetic_rows("test", seed)})


def _gsm8k_from_folder(folder: Path) -> dict[str, _Rows]:
    files = {"train": resolve_split(folder, "train"), "test": resolve_split(folder, "test")}
    hint = "GSM8K's own columns are expected"
    splits = {split: read_rows(file, "question", "answer", column_hint=hint) for split, file in files.items()}
    for split, rows in splits.items():
        _require_final_answers(str(files[split]), rows, first=1 if files[split].suffix == ".jsonl" else 0)
    return splits


def _gsm8k_from_hub(name: str) -> dict[str, _Rows]:
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
        _require_final_answers(f"{name}, {split}", rows, first=0)
    return splits


def _require_final_answers(origin: str, rows: _Rows, first: int) -> None:
    for number, (_, answer) in enumerate(rows, start=first):
        if "####" not in answer:
            raise DataError(f"{origin}:{number}: 'answer' has no final answer after ####")


def _refuse_existing(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; --out names a folder")
    existing = [str(out / f"{split}.parquet") for split in _SPLITS if (out / f"{split}.parquet").exists()]
    if existing:
        raise UserError(f"{' and '.join(existing)} exist(s) already; remove or choose another --out")


def _write_splits(out: Path, splits: dict[str, _Rows]) -> dict[str, int]:
    """Writes every split beside its final name first, so that an interruption leaves no half-written file under it."""
    out.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        table = pyarrow.table({"prompt": [prompt for prompt, _ in rows], "answer": [answer for _, answer in rows]})
        pyarrow.parquet.write_table(table, out / f".{split}.parquet.partial")
    for split in splits:
        os.replace(out / f".{split}.parquet.partial", out / f"{split}.parquet")
    return {split: len(rows) for split, rows in splits.items()}
