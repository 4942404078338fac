"""Rows from data files. A row that cannot be used is an error, never skipped."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from asyncrl.data.file_formats import Record, read_records
from asyncrl.data.messages import Message, as_text, check_messages
from asyncrl.errors import DataError

_MESSAGES_AS_TEXT = re.compile(r"""\s*\[\s*\{\s*["'](role|content)["']\s*:""")


@dataclass(frozen=True)
class Row:
    """A row of the data."""

    prompt: str
    """Text; of messages, their contents with a line break between them."""
    answer: str
    """Text; a number as Python writes it, a list or an object as JSON."""
    messages: list[Message] | None = None
    columns: str = ""
    """What rewards take by name beside these two, as JSON (see `Prompt.columns`)."""
    place: str = ""
    """File and line, for messages."""
    data_set: str = ""
    """Its name in a mixture."""


@dataclass(frozen=True)
class Columns:
    """What to read, by column. A name is that of a column, else a dotted path into nested ones."""

    prompt: str = "prompt"
    """Text, or a list of messages."""
    answer: str = "answer"
    """Text, numbers, lists or objects."""
    extra: Mapping[str, bool] = field(default_factory=dict)
    """Further ones that the rewards take → whether each row must have it."""
    every: bool = False
    """Some reward takes all columns there are."""
    hint: str = "set data.prompt_column and data.answer_column"
    """How to mend a missing prompt or answer, for messages."""


def read_rows(files: Sequence[Path], columns: Columns) -> list[Row]:
    """The rows of all files, in their order.

    Raises:
        DataError: names the file and the line (from 1) or row (from 0) of the first bad row.
    """
    wanted = None if columns.every else {columns.prompt, columns.answer, *columns.extra}
    rows: list[Row] = []
    for file in files:
        of_file = [_row(place, record, columns) for place, record in read_records(file, wanted)]
        if not of_file:
            shards = f", one of {len(files)} shards; write the data set again without it" * (len(files) > 1)
            raise DataError(f"{file} has no rows{shards}")
        rows += of_file
    return rows


def _row(place: str, record: Record, columns: Columns) -> Row:
    prompt = _look_up(place, record, columns.prompt, columns.hint)
    answer = _look_up(place, record, columns.answer, columns.hint)
    further = _further(place, record, columns)
    messages = None
    if isinstance(prompt, list):
        messages = check_messages(f"{place}: {columns.prompt!r}", prompt)
        further["messages"] = messages
        prompt = as_text(messages)
    if isinstance(answer, list | dict):
        further["answer"] = answer
    encoded = json.dumps(further, default=str) if further else ""
    return Row(
        prompt=_prompt_text(place, columns.prompt, prompt),
        answer=_answer_text(place, columns.answer, answer),
        messages=messages,
        columns=encoded,
        place=place,
    )


def _look_up(place: str, record: Record, path: str, hint: str) -> Any:
    """The column of that name, else what the dotted path leads to."""
    value: Any = record
    for name in [path] if path in record else path.split("."):
        if not isinstance(value, dict) or name not in value:
            there = ", ".join(_paths(record)) or "none"
            raise DataError(f"{place}: no column {path!r}; it has {there} ({hint})")
        value = value[name]
    return value


def _paths(record: Record) -> list[str]:
    """The columns as one would name them, those of an object with what is in it."""
    return [
        path
        for name, value in record.items()
        for path in ([f"{name}.{inner}" for inner in value] if isinstance(value, dict) and value else [name])
    ]


def _further(place: str, record: Record, columns: Columns) -> Record:
    """What the rewards ask for by name."""
    for name, must_be_there in columns.extra.items():
        if must_be_there and name not in record:
            raise DataError(
                f"{place}: no column {name!r}, which a function of reward.terms takes by name; it has "
                f"{', '.join(record)}, and each function may take prompt, completion, messages, answer and tokens"
            )
    own = {columns.prompt, columns.answer}
    return {
        name: value for name, value in record.items() if name not in own and (columns.every or name in columns.extra)
    }


def _prompt_text(place: str, column: str, value: Any) -> str:
    if not isinstance(value, str):
        raise DataError(f"{place}: {column!r} must be text or a list of messages, not {type(value).__name__}")
    if not value.strip():
        raise DataError(f"{place}: {column!r} is empty")
    if _MESSAGES_AS_TEXT.match(value):
        raise DataError(
            f"{place}: {column!r} is a list of messages written as JSON text; store the list itself (json.loads)"
        )
    return _valid_unicode(place, column, value)


def _answer_text(place: str, column: str, value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        found = "null" if value is None else value
        raise DataError(f"{place}: {column!r} is {found}; a missing answer cannot be scored, drop the row")
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, list | dict):
        value = json.dumps(value, ensure_ascii=False, default=str)
    if not isinstance(value, str):
        raise DataError(f"{place}: {column!r} must be text, a number, a list or an object, not {type(value).__name__}")
    return _valid_unicode(place, column, value)


def _valid_unicode(place: str, column: str, value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair, which no tokenizer takes
        raise DataError(f"{place}: {column!r} is not valid Unicode: {error.reason}") from error
    return value
