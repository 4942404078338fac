"""Rows of (prompt, answer) from .jsonl and .parquet files. A row that cannot be used is an error, never skipped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pyarrow
import pyarrow.parquet

from asyncrl.errors import DataError

_SUFFIXES = (".parquet", ".jsonl")


def resolve_split(path: Path, split: Literal["train", "test"]) -> Path:
    """The file itself, or a folder's `split`.parquet, else its `split`.jsonl.

    Raises:
        DataError: nothing there, or a folder without that split.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise DataError(f"{path} does not exist; give a .parquet or .jsonl file, or a folder with one for each split")
    for suffix in _SUFFIXES:
        file = path / f"{split}{suffix}"
        if file.is_file():
            return file
    raise DataError(f"folder {path} has neither {split}.parquet nor {split}.jsonl")


def read_rows(
    path: Path,
    prompt_column: str,
    answer_column: str,
    column_hint: str = "set data.prompt_column and data.answer_column",
) -> list[tuple[str, str]]:
    """(prompt, answer) of every row, in the file's order; numbers in the answer column become text.

    Args:
        path: a .jsonl file (UTF-8, one object a line) or a .parquet file.
        prompt_column: strings, none of them blank.
        answer_column: strings or numbers.
        column_hint: how to mend a missing column, for the message.

    Raises:
        DataError: names the file and the line (.jsonl, from 1) or row (.parquet, from 0) of the first bad row.
    """
    if path.suffix not in _SUFFIXES:
        raise DataError(f"{path}: a data file is .jsonl or .parquet")
    if not path.is_file():
        raise DataError(f"{path} does not exist")
    columns = (prompt_column, answer_column)
    records = _jsonl_records(path) if path.suffix == ".jsonl" else _parquet_records(path, columns, column_hint)
    rows = []
    for place, record in records:
        _require_columns(place, columns, list(record), column_hint)
        prompt = _prompt_text(place, prompt_column, record[prompt_column])
        rows.append((prompt, _answer_text(place, answer_column, record[answer_column])))
    if not rows:
        raise DataError(f"{path} has no rows")
    return rows


def _jsonl_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(`file:line`, object) of each line."""
    content = path.read_bytes().rstrip()
    for number, line in enumerate(content.split(b"\n") if content else [], start=1):
        place = f"{path}:{number}"
        if not line.strip():
            raise DataError(f"{place}: the line is empty")
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
            raise DataError(f"{place}: not valid JSON: {error}") from error
        if not isinstance(record, dict):
            raise DataError(f"{place}: a row must be a JSON object, not {type(record).__name__}")
        yield place, record


def _parquet_records(path: Path, columns: tuple[str, str], hint: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(`file, row N`, record) of each row."""
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            _require_columns(str(path), columns, file.schema_arrow.names, hint)
            table = file.read(columns=list(dict.fromkeys(columns)))
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable parquet file: {error}") from error
    for number, record in enumerate(table.to_pylist()):
        yield f"{path}, row {number}", record


def _require_columns(place: str, columns: tuple[str, str], existing: list[str], hint: str) -> None:
    for column in columns:
        if column not in existing:
            raise DataError(f"{place}: no column {column!r}; it has {', '.join(existing) or 'none'} ({hint})")


def _prompt_text(place: str, column: str, value: Any) -> str:
    text = _text(place, column, value)
    if not text.strip():
        raise DataError(f"{place}: {column!r} is empty")
    return text


def _answer_text(place: str, column: str, value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return _text(place, column, value)


def _text(place: str, column: str, value: Any) -> str:
    if not isinstance(value, str):
        raise DataError(f"{place}: {column!r} must be text, not {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair, which no tokenizer takes
        raise DataError(f"{place}: {column!r} is not valid Unicode: {error.reason}") from error
    return value
