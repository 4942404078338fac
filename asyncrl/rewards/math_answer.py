"""Whether a completion's answer equals the reference as mathematics, by math-verify."""

from __future__ import annotations

import logging
import re
from typing import Any

from asyncrl.rewards.final_answer import final_answer, final_number, last_boxed

_MATH_ENVIRONMENT = re.compile(r"(?<!\\)\$|\\[(\[]|\\begin\{(?:equation|align)")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_TEXT = re.compile(r"\\(?:text(?:bf|it|rm)?|math(?:rm|bf)|mbox)\s*\{([^{}]*)\}")
_WORDS = re.compile(r"[a-z]{2,}(?:[ -][a-z]+)*")
_LAYOUT = re.compile(r"\\(?:left|right)(?![A-Za-z])|\\[,;:! ]|~|\$")
_BLANKS = re.compile(r"(?<![A-Za-z0-9])\s+|\s+(?![A-Za-z0-9])")
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\s*\{\w+\*?\}")
_PROSE = re.compile(r"\b(?:is|are|has|have|equals?|answer|so|thus|hence|therefore|we)\b", re.IGNORECASE)
_MOST_WORDS = 8
"""Of an answer in words; a longer one is a solution that nothing will repeat."""
_SPELLINGS = {r"\varnothing": r"\emptyset", r"\langle": "(", r"\rangle": ")"}
"""What math-verify reads as a letter, and as the number 1.2 for `⟨1, 2⟩`."""
_BASE = re.compile(r"[0-9]_\{?([0-9]+)")
_MISSING = frozenset({"", "nan", "none", "null", "n/a", "tbd"})
"""What a data set without an answer is turned into on its way; math-verify reads `nan` as a · n · n."""
_PUNCTUATION = re.compile(r"[\s?!.,;:…*_/–—-]*")


def equals_reference(completion: str, reference: str) -> bool:
    """Equal numbers, exactly; the same words; the same text; else what math-verify finds equal.

    Raises:
        ValueError: math-verify reads nothing from the reference.
    """
    number = final_number(reference)
    if number is not None and final_number(completion) == number:
        return True
    words = _words(reference)
    if words is not None and _words(completion) == words:
        return True
    if _bases(completion) != _bases(reference):
        return False  # math-verify reads 12_5 as 12
    parsed = parse_reference(reference)
    if _text(completion) == _text(reference) and not _is_prose(reference):
        return True
    from math_verify import verify

    return bool(verify(parsed, _parse(_stated(completion)), timeout_seconds=None))


def warm_up() -> None:
    """Loads math-verify and its parser, which takes a second or more, so that no completion's limit has to cover it."""
    equals_reference(r"\boxed{(1, \frac{\pi}{2}]}", r"\sqrt{2} x")


def parse_reference(reference: str) -> list[Any]:
    """What math-verify makes of a reference: its final answer where it states one, else all of it.

    Raises:
        ValueError: nothing.
    """
    stated = final_answer(reference)
    answer = reference if stated is None else stated
    missing = (
        answer.strip().lower() in _MISSING or _PUNCTUATION.fullmatch(answer) or answer.count("{") != answer.count("}")
    )
    parsed = [] if missing else _parse(_in_box(answer))
    if not parsed:
        raise ValueError(f"the answer {reference!r} is no mathematical expression")
    return parsed


def _words(text: str) -> str | None:
    r"""The final answer when it is words, which math-verify tells from `\text{words}`; None for all else."""
    answer = final_answer(text) or text
    words = _TEXT.sub(r"\1", answer).strip(" .$").lower()
    is_answer = _WORDS.fullmatch(words) and words not in _MISSING and len(words.split()) <= _MOST_WORDS
    return words if is_answer else None


def _text(text: str) -> str:
    """The final answer without what only lays it out."""
    answer = _TEXT.sub(r"\1", _LAYOUT.sub(" ", final_answer(text) or text))
    return _BLANKS.sub("", answer.strip(" ."))


def _is_prose(reference: str) -> bool:
    """A solution in words that states no final answer: no completion will repeat it."""
    if final_answer(reference) is not None:
        return False
    has_verb = _PROSE.search(reference) and re.search("[0-9]", reference)
    return bool(has_verb) or len(_WORD.findall(reference)) > _MOST_WORDS


def _bases(text: str) -> list[str]:
    """Of the numbers in the final answer that have one."""
    return _BASE.findall(final_answer(text) or text)


def _stated(completion: str) -> str:
    """The completion for math-verify, which reads LaTeX only where it is marked as such."""
    if last_boxed(completion) is not None:
        return completion
    answer = final_answer(completion)
    is_heading = answer is not None and _WORD.search(answer) and _MATH_ENVIRONMENT.search(completion)
    if answer is not None and not is_heading:
        return _in_box(answer)
    has_words = _WORD.search(_ENVIRONMENT.sub("", _TEXT.sub("", completion)))
    return completion if has_words else _in_box(completion)


def _in_box(answer: str) -> str:
    return answer if _MATH_ENVIRONMENT.search(answer) else rf"\boxed{{{answer.strip()}}}"


def _parse(text: str) -> list[Any]:
    from math_verify import parse

    # Its own limits use the alarm signal that the pool's limit uses, and are therefore turned off; it warns of that.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    for spelling, known in _SPELLINGS.items():
        text = text.replace(spelling, known)
    return list(parse(text, parsing_timeout=None))
