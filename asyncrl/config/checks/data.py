"""What a data section may say beside the choices and ranges of its keys."""

from __future__ import annotations

import difflib
from pathlib import Path

from asyncrl.config.schema import TEMPLATE_CHOICES, DataConfig


def data_problems(data: DataConfig) -> list[str]:
    """One line for each problem, with the key and the fix."""
    if data.chat_template in TEMPLATE_CHOICES or Path(data.chat_template).is_file():
        return []
    near = difflib.get_close_matches(data.chat_template, TEMPLATE_CHOICES, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return [f"data.chat_template={data.chat_template!r} is none of {', '.join(TEMPLATE_CHOICES)}, and no file{hint}"]
