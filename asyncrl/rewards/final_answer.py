r"""The final answer of a text, and its number.

A text states its final answer on the line after its last `####` (GSM8K's form), else inside its last `\boxed{}`, else
by being nothing but a number (`32`, as for `7+25=`). The last number of a text that does none of these is *not* taken:
this is GSM8K's strict match, since a reward for any number in passing is soon gamed.
"""

from __future__ import annotations

import re
from fractions import Fraction

_MARK = "####"
_BOXED = r"\boxed{"
_MAX_DIGITS = 100
"""A longer run of digits is a loop of the model, not an answer; it also bounds the cost of exact arithmetic."""

_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)"
_NUMBER = re.compile(
    rf"""
    (?P<sign>[-+]?) \s* \\?[$€£]? \s* (?P<sign_after>-?)
    (?P<number>{_DIGITS}(?:\.[0-9]*)?|\.[0-9]+)
    (?:\s*/\s*(?P<denominator>{_DIGITS}))?
    \s* \\?%? \s* \\?\$? \s*
    (?P<rest>.*)
    """,
    re.VERBOSE,
)


def final_answer(text: str) -> str | None:
    r"""What follows the last `####` on its line, else what the last `\boxed{}` holds, else None."""
    _, mark, tail = text.rpartition(_MARK)
    if mark:
        return tail.strip().partition("\n")[0].strip()
    return _last_boxed(text)


def final_number(text: str) -> Fraction | None:
    """The number of the final answer, or of the whole text when it states none; None when that is not a number."""
    stated = final_answer(text)
    return parse_number(text if stated is None else stated)


def parse_number(text: str) -> Fraction | None:
    """The exact value of `18`, `18.00`, `-1,234.5`, `$18`, `18%` (= 18), `3/4`, or `18 apples.`; None for all else.

    Words may follow the number, further digits may not: `18 or 19` is two answers.
    """
    match = _NUMBER.fullmatch(text.strip())
    if match is None or len(text) > _MAX_DIGITS or re.search("[0-9]", match["rest"]):
        return None
    value = Fraction(match["number"].replace(",", "").rstrip("."))
    if match["denominator"]:
        denominator = Fraction(match["denominator"].replace(",", ""))
        if not denominator:
            return None
        value /= denominator
    return -value if "-" in (match["sign"], match["sign_after"]) else value


def ends_in_final_answer(text: str) -> bool:
    r"""Whether the text ends in the line `#### number` or in `\boxed{number}`; a period or `$` may follow."""
    text = text.strip()
    if _MARK in text:
        tail = text.rpartition(_MARK)[2].strip()
        return "\n" not in tail and parse_number(tail) is not None
    boxed = _last_boxed(text)
    return boxed is not None and parse_number(boxed) is not None and text.rstrip(".$ ").endswith(boxed + "}")


def _last_boxed(text: str) -> str | None:
    """The content of the last `boxed`, braces balanced; None when there is none or it is not closed."""
    start = text.rfind(_BOXED)
    if start < 0:
        return None
    start += len(_BOXED)
    depth = 1
    for end in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return text[start:end].strip()
    return None
