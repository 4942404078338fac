"""From rows to `Prompt`s (tokens, length limit), and the file that carries them to the replay role."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from asyncrl.config.data import DataConfig
from asyncrl.data.chat import apply_chat_template, chat_template
from asyncrl.data.rows import Row
from asyncrl.errors import DataError
from asyncrl.types import Prompt

_SCHEMA = pyarrow.schema(
    [
        ("row", pyarrow.int64()),
        ("token_ids", pyarrow.list_(pyarrow.int32())),
        ("text", pyarrow.large_string()),
        ("answer", pyarrow.large_string()),
        ("columns", pyarrow.large_string()),
        ("data_set", pyarrow.string()),
    ]
)

_MAX_NAMED_ROWS = 5


def tokenize_prompts(
    rows: Sequence[Row], tokenizer: Any, config: DataConfig, file: str, data_set: str = ""
) -> tuple[list[Prompt], int]:
    """Tokenized prompts, and how many were dropped as longer than `data.max_prompt_tokens`.

    Args:
        rows: in the order of the file; the position becomes `Prompt.row`.
        tokenizer: a transformers tokenizer.
        config: chat_template, chat_template_kwargs, system_prompt, max_prompt_tokens and overlong_prompts are read.
        file: the rows' origin, for messages.
        data_set: their name in a mixture.

    Raises:
        ConfigError: a chat template is asked for that the tokenizer lacks, that does not know an argument, or that
            refuses the messages.
        DataError: overlong prompts under `overlong_prompts=error`, an empty tokenization, or nothing left.
    """
    template = chat_template(tokenizer, config)
    if template is not None:
        texts = apply_chat_template(template, rows, tokenizer, config)
        token_ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    else:
        token_ids = tokenizer([row.prompt for row in rows])["input_ids"]
    if empty := [row for row, ids in enumerate(token_ids) if not ids]:
        raise DataError(f"{file}: {_name_rows(empty)} tokenized to nothing")
    overlong = {row for row, ids in enumerate(token_ids) if len(ids) > config.max_prompt_tokens}
    if overlong and config.overlong_prompts == "error":
        raise DataError(
            f"{file}: {_name_rows(sorted(overlong))} longer than data.max_prompt_tokens = {config.max_prompt_tokens}; "
            "raise it or set data.overlong_prompts=drop"
        )
    prompts = [
        Prompt(row=number, token_ids=ids, text=row.prompt, answer=row.answer, columns=row.columns, data_set=data_set)
        for number, (ids, row) in enumerate(zip(token_ids, rows, strict=True))
        if number not in overlong
    ]
    if not prompts:
        shortest = min(len(ids) for ids in token_ids)
        raise DataError(
            f"{file}: no prompt fits data.max_prompt_tokens = {config.max_prompt_tokens}; the shortest has {shortest}: "
            "raise it"
        )
    return prompts, len(overlong)


def save_prompts(path: Path, prompts: Sequence[Prompt]) -> None:
    """Writes the prompts as parquet, for `load_prompts`."""
    columns = {name: [getattr(prompt, name) for prompt in prompts] for name in _SCHEMA.names}
    pyarrow.parquet.write_table(pyarrow.table(columns, schema=_SCHEMA), path)


def load_prompts(path: Path) -> list[Prompt]:
    """What `save_prompts` wrote; needs no tokenizer."""
    return [Prompt(**record) for record in pyarrow.parquet.read_table(path).to_pylist()]


def _name_rows(rows: Sequence[int]) -> str:
    named = ", ".join(str(row) for row in rows[:_MAX_NAMED_ROWS])
    more = f" and {len(rows) - _MAX_NAMED_ROWS} more" if len(rows) > _MAX_NAMED_ROWS else ""
    return f"row(s) {named}{more}"
