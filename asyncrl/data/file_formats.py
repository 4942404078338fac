"""The records of a data file, each with its place for messages: `file:line`, or `file, row N`."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from asyncrl.data.splits import FORMATS, suffix_of
from asyncrl.errors import DataError

Record = dict[str, Any]

_WRAPPERS = ("data", "rows", "examples", "instances")


def read_records(path: Path, columns: Collection[str] | None) -> Iterator[tuple[str, Record]]:
    """(place, record) of each row.

    Args:
        path: .parquet, .jsonl (UTF-8; a byte order mark, CRLF and blank lines are allowed) or .json (a list of objects,
            or lines); the latter two also .gz or .zst.
        columns: the columns that are needed, as dotted paths, so that a parquet file is not read whole; None = all.

    Raises:
        DataError: names the file, and the line (from 1) or row (from 0).
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist")
    suffix = suffix_of(path)
    if suffix == ".parquet":
        return _parquet_records(path, columns)
    if suffix.startswith(".jsonl"):
        return _line_records(path, _read_text(path))
    if suffix.startswith(".json"):
        return _json_records(path, _read_text(path))
    raise DataError(
        f"{path}: a data file is {', '.join(FORMATS[:-1])} or {FORMATS[-1]}, the latter two also .gz or .zst"
    )


def _read_text(path: Path) -> str:
    compression = {".gz": "gzip", ".zst": "zstd"}.get(path.suffix.lower())
    try:
        with pyarrow.input_stream(str(path), compression=compression) as file:
            content: bytes = file.read()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: not valid JSON: it is not UTF-8 ({error.reason})") from error


def _line_records(path: Path, text: str) -> Iterator[tuple[str, Record]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            place = f"{path}:{number}"
            yield place, _object(place, _parse(place, line))


def _json_records(path: Path, text: str) -> Iterator[tuple[str, Record]]:
    """A list of objects, alone or as `data` or the like of an object; else lines, which people also call .json."""
    if not text.strip():
        return
    try:
        loaded = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise DataError(f"{path}:{error.lineno}: not valid JSON: {error}") from error
        yield from _line_records(path, text)
        return
    except RecursionError as error:
        raise DataError(f"{path}: not valid JSON: {error}") from error
    if isinstance(loaded, dict):
        loaded = next((loaded[name] for name in _WRAPPERS if isinstance(loaded.get(name), list)), [loaded])
    if not isinstance(loaded, list):
        raise DataError(f"{path}: must be a list of objects, or an object a line, not {type(loaded).__name__}")
    for number, record in enumerate(loaded):
        place = f"{path}, row {number}"
        yield place, _object(place, record)


def _parse(place: str, line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:  # JSONDecodeError is a ValueError
        raise DataError(f"{place}: not valid JSON: {error}") from error


def _object(place: str, value: Any) -> Record:
    if not isinstance(value, dict):
        raise DataError(f"{place}: a row must be a JSON object, not {type(value).__name__}")
    return value


def _parquet_records(path: Path, columns: Collection[str] | None) -> Iterator[tuple[str, Record]]:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            table = file.read(columns=None if columns is None else _needed(names, columns))
        records = table.to_pylist(maps_as_pydicts="strict")
    except (pyarrow.ArrowException, OSError, ValueError, KeyError) as error:  # the last two are of single values
        raise DataError(f"{path}: not a readable parquet file: {error}") from error
    for number, record in enumerate(records):
        yield f"{path}, row {number}", record


def _needed(names: list[str], columns: Collection[str]) -> list[str]:
    """Of the columns there are; all when one is missing, for the message that names them."""
    found = {column if column in names else column.partition(".")[0] for column in columns}
    return [name for name in names if name in found] if found <= set(names) else names
