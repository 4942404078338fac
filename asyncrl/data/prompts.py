"""From rows to `Prompt`s (chat template, tokens, length limit), and the file that carries them to the replay role."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from asyncrl.config.schema import DataConfig
from asyncrl.errors import ConfigError, DataError
from asyncrl.types import Prompt

_SCHEMA = pyarrow.schema(
    [
        ("row", pyarrow.int64()),
        ("token_ids", pyarrow.list_(pyarrow.int32())),
        ("text", pyarrow.large_string()),
        ("answer", pyarrow.large_string()),
        ("columns", pyarrow.large_string()),
    ]
)

_MAX_NAMED_ROWS = 5


def tokenize_prompts(
    rows: Sequence[tuple[str, str]], tokenizer: Any, config: DataConfig, file: str
) -> tuple[list[Prompt], int]:
    """Tokenized prompts, and how many were dropped as longer than `data.max_prompt_tokens`.

    Args:
        rows: (prompt, answer), in the order of the file; the position becomes `Prompt.row`.
        tokenizer: a transformers tokenizer.
        config: chat_template, system_prompt, max_prompt_tokens and overlong_prompts are read.
        file: the rows' origin, for messages.

    Raises:
        ConfigError: a chat template is asked for that the tokenizer lacks or that refuses the messages.
        DataError: overlong prompts under `overlong_prompts=error`, an empty tokenization, or nothing left.
    """
    texts = [prompt for prompt, _ in rows]
    if _uses_chat_template(tokenizer, config):
        templated = _apply_chat_template(texts, tokenizer, config.system_prompt)
        token_ids = tokenizer(templated, add_special_tokens=False)["input_ids"]
    else:
        token_ids = tokenizer(texts)["input_ids"]
    if empty := [row for row, ids in enumerate(token_ids) if not ids]:
        raise DataError(f"{file}: {_name_rows(empty)} tokenized to nothing")
    overlong = {row for row, ids in enumerate(token_ids) if len(ids) > config.max_prompt_tokens}
    if overlong and config.overlong_prompts == "error":
        raise DataError(
            f"{file}: {_name_rows(sorted(overlong))} longer than data.max_prompt_tokens = {config.max_prompt_tokens}; "
            "raise it or set data.overlong_prompts=drop"
        )
    prompts = [
        Prompt(row=row, token_ids=ids, text=text, answer=answer)
        for row, (ids, (text, answer)) in enumerate(zip(token_ids, rows, strict=True))
        if row not in overlong
    ]
    if not prompts:
        raise DataError(f"{file}: no prompt fits data.max_prompt_tokens = {config.max_prompt_tokens}")
    return prompts, len(overlong)


def save_prompts(path: Path, prompts: Sequence[Prompt]) -> None:
    """Writes the prompts as parquet, for `load_prompts`."""
    columns = {name: [getattr(prompt, name) for prompt in prompts] for name in _SCHEMA.names}
    pyarrow.parquet.write_table(pyarrow.table(columns, schema=_SCHEMA), path)


def load_prompts(path: Path) -> list[Prompt]:
    """What `save_prompts` wrote; needs no tokenizer."""
    return [Prompt(**record) for record in pyarrow.parquet.read_table(path).to_pylist()]


def _uses_chat_template(tokenizer: Any, config: DataConfig) -> bool:
    has_template = tokenizer.chat_template is not None
    if config.chat_template == "always" and not has_template:
        raise ConfigError("data.chat_template=always, but the tokenizer has no chat template; use auto or never")
    applies = has_template and config.chat_template != "never"
    if config.system_prompt is not None and not applies:
        raise ConfigError("data.system_prompt needs a chat template, and none is applied; put it into the rows")
    return applies


def _apply_chat_template(texts: Sequence[str], tokenizer: Any, system_prompt: str | None) -> list[str]:
    from jinja2 import TemplateError

    system = [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
    conversations = [[*system, {"role": "user", "content": text}] for text in texts]
    try:
        templated: list[str] = tokenizer.apply_chat_template(conversations, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        raise ConfigError(f"the chat template refused the messages ({error}); see data.chat_template") from error
    return templated


def _name_rows(rows: Sequence[int]) -> str:
    named = ", ".join(str(row) for row in rows[:_MAX_NAMED_ROWS])
    more = f" and {len(rows) - _MAX_NAMED_ROWS} more" if len(rows) > _MAX_NAMED_ROWS else ""
    return f"row(s) {named}{more}"
