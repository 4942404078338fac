"""The chat template: which one, with which arguments, and the text that it makes of a row."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from asyncrl.config.data import TEMPLATE_CHOICES, DataConfig
from asyncrl.data.messages import Message
from asyncrl.data.rows import Row
from asyncrl.errors import ConfigError, DataError


def chat_template(tokenizer: Any, config: DataConfig) -> str | None:
    """The template to apply: that of the file, else the tokenizer's; None = none.

    Raises:
        ConfigError: `always` without a template, or a key that would have no effect.
    """
    template: str | None = None
    if config.chat_template not in TEMPLATE_CHOICES:
        template = _read_template(Path(config.chat_template))
    elif config.chat_template != "never":
        template = tokenizer.get_chat_template() if tokenizer.chat_template else None
        if template is None and config.chat_template == "always":
            raise ConfigError(
                "data.chat_template=always, but the tokenizer has no chat template; use auto, never or a file with one"
            )
    if template is None and config.system_prompt is not None:
        raise ConfigError("data.system_prompt needs a chat template, and none is applied; put it into the rows")
    for name in config.chat_template_kwargs:
        if template is None or not re.search(rf"\b{re.escape(name)}\b", template):
            raise ConfigError(f"data.chat_template_kwargs.{name}: the chat template does not use it; leave it out")
    return template


def apply_chat_template(template: str, rows: Sequence[Row], tokenizer: Any, config: DataConfig) -> list[str]:
    """Each row's conversation as one text that ends where the answer begins.

    Raises:
        ConfigError: the template refuses the messages of a row, which is named, or is no valid template.
        DataError: a row has a system message beside `data.system_prompt`.
    """
    from jinja2 import TemplateError

    conversations = [_conversation(row, config.system_prompt) for row in rows]
    try:
        templated: list[str] = tokenizer.apply_chat_template(
            conversations,
            chat_template=template,
            tokenize=False,
            add_generation_prompt=True,
            **config.chat_template_kwargs,
        )
    except (TemplateError, TypeError) as error:
        reason = f"data.chat_template={config.chat_template}: the chat template refused the messages ({error})"
        if len(rows) == 1:
            raise ConfigError(f"{rows[0].place}: {reason}") from error
        for row in rows:  # which one is it?
            apply_chat_template(template, [row], tokenizer, config)
        raise ConfigError(reason) from error
    return templated


def _read_template(file: Path) -> str:
    try:
        template = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"data.chat_template={file}: cannot be read as UTF-8 text: {error}") from error
    if not template.strip():
        raise ConfigError(f"data.chat_template={file}: the file is empty; use auto, never or a file with a template")
    return template


def _conversation(row: Row, system_prompt: str | None) -> list[Message]:
    messages = row.messages or [{"role": "user", "content": row.prompt}]
    if system_prompt is None:
        return messages
    if messages[0]["role"] in ("system", "developer"):
        raise DataError(f"{row.place}: the row has a system message of its own; leave data.system_prompt out")
    return [{"role": "system", "content": system_prompt}, *messages]
