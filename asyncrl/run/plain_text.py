"""Text that a model or a role wrote, made safe to show.

A model's text is hostile input: control characters and escape sequences could move the cursor, change the window's
title or the clipboard, or hide lines of a log from whoever reads it in a terminal.
"""

from __future__ import annotations

import unicodedata

_KEPT = "\n\t"
_UNSAFE = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode's categories: controls (ESC and C1 among them), formats (bidirectional overrides), lone surrogates, and
separators that some programs break lines at."""


def plain(text: str) -> str:
    """Each unsafe character as its Python escape, such as `\\x1b`; line ends and tabs stay."""
    return "".join(_visible(character) for character in text)


def _visible(character: str) -> str:
    if character in _KEPT or unicodedata.category(character) not in _UNSAFE:
        return character
    return character.encode("unicode_escape").decode()
