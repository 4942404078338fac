r"""The final answer of a text, and its number.

A text states its final answer on the line after `####` (GSM8K's form), inside its last `\boxed{}`, or by being nothing
but a number (`32`, as for `7+25=`). The last number of a text that does none of these is *not* taken: this is GSM8K's
strict match, since a reward for any number in passing is soon gamed.
"""

from __future__ import annotations

from fractions import Fraction

from asyncrl.rewards.number import parse_number

_MARK = "####"
_BOXED = r"\boxed{"


def final_answer(text: str) -> str | None:
    r"""The last answer that the text states, else None.

    `####` also begins a Markdown heading. So beside a `\boxed{}` it counts only when a number follows it and nothing
    but blanks follows that line; without one, the last `####` that a number follows counts, else the last of all.
    """
    tails = text.split(_MARK)[1:]
    lines = [tail.strip().partition("\n")[0].strip() for tail in tails]
    boxed = last_boxed(text)
    if boxed is not None and not (tails and _is_last_word(tails[-1])):
        return boxed
    return next((line for line in reversed(lines) if parse_number(line) is not None), lines[-1] if lines else None)


def final_number(text: str) -> Fraction | None:
    """The number of the final answer, or of the whole text when it states none; None when that is not a number."""
    stated = final_answer(text)
    return parse_number(text if stated is None else stated)


def ends_in_final_answer(text: str) -> bool:
    r"""Whether the text ends in the line `#### number` or in `\boxed{number}`; a period or `$` may follow."""
    text = text.strip()
    if _MARK in text and _is_last_word(text.rpartition(_MARK)[2]):
        return True
    boxed = last_boxed(text)
    return boxed is not None and parse_number(boxed) is not None and text.rstrip(".$*)] \\").endswith(boxed + "}")


def _is_last_word(tail: str) -> bool:
    """What follows `####` is a number, and the text ends with its line."""
    return "\n" not in tail.strip() and parse_number(tail) is not None


def last_boxed(text: str) -> str | None:
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
