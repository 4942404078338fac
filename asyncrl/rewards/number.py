r"""The exact value of a number as people and models write it.

`18`, `-1,234.5`, `$18`, `18%` (= 18), `3/4`, `1e3`, `2{,}500`, `\frac{3}{8}`, `1\frac{1}{2}`, `5 \times 10^{3}`,
`**48**`, `x = 48`, `48\text{ m}^2`, `18 apples.`, `1.234.567,89`, `1 234 567`, `0.\overline{3}`, `1½`, `2 million`

Words and units may follow a number, mathematics may not: `48\pi`, `4!`, `48x`, `48 squared` and `18 or 19` have no
value here.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

_MAX_CHARS = 100
"""What is longer is a loop of the model, not an answer; it also bounds the cost of exact arithmetic."""
_MAX_EXPONENT = 300

_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)"
_DECIMAL = rf"(?:{_DIGITS}(?:\.[0-9]*)?|\.[0-9]+)"

_EMPHASIS = re.compile(r"(?:^|(?<=\s))(\*\*|\*|__|_|`)(?=\S)(.+?)(?<=\S)\1(?=\W|$)")
_TEXT_COMMAND = re.compile(r"\\(?:text(?:bf|it|rm)?|math(?:bf|it|rm)|mbox|boxed)\s*\{([^{}]*)\}")
_FRACTION = re.compile(
    rf"\\[cdt]?frac\s*(?:\{{\s*(-?\s*{_DECIMAL})\s*\}}|([0-9]))\s*(?:\{{\s*({_DECIMAL})\s*\}}|([0-9]))"
)
_VULGAR_FRACTION = re.compile(r"[¼½¾⅐-⅞]")
_REPEATING = re.compile(r"([0-9]+)\.([0-9]*)(?:\\(?:overline|bar|dot)\s*\{([0-9]+)\}|\(([0-9]+)\))")
_GROUPED_BY_POINTS = re.compile(
    r"(?<![0-9.,])[0-9]{1,3}(?:(?:\.[0-9]{3}){2,}(?:,[0-9]+)?|(?:\.[0-9]{3})+,[0-9]{1,2})(?![0-9.,])"
)
_GROUPED_BY_BLANKS = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?:[ '’][0-9]{3})+(?:,[0-9]{1,2})?(?![0-9,]| ?/)")
_GROUPED_BY_LAKHS = re.compile(r"(?<![0-9.,])[0-9]{1,2}(?:,[0-9]{2})+,[0-9]{3}(?![0-9,])")
"""India's; `1.234` and `1,23` stay what they are in English."""
_POWER_OF_TEN = re.compile(r"\s*(?:\\times|\\cdot|[×·*x])\s*10\s*(?:\^|\*\*)\s*\{?\s*([-+]?[0-9]{1,3})\s*\}?")
_BARE_POWER_OF_TEN = re.compile(r"^(\s*-?\s*)10\s*(?:\^|\*\*)\s*\{?\s*([-+]?[0-9]{1,3})\s*\}?")
_SPELLINGS = (
    (re.compile(r"[−–]"), "-"),
    (re.compile(r"\\(?:left|right|displaystyle)\b|\\!"), ""),
    (re.compile(r"\\[()\[\]]|\\?\$"), "$"),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"(?<=[0-9])(?:\\,|[\u00a0\u2009\u202f])(?=[0-9]{3}(?![0-9]))"), ","),
    (re.compile(r"\\[,;: ]|[~\u00a0\u2009\u202f]"), " "),
    (re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\\degree\b"), "°"),
    (re.compile(r"\\%"), "%"),
)
_NAME = re.compile(r"\$?\s*(?:[A-Za-z][A-Za-z ]*(?:_\{?\w+\}?)?(?:\([^()]*\))?\s*[=:]|=)\s*(?!=)")
"""What a value is given to: `x =`, `f(2) =`, `Total cost:`; not `2x =`."""

_NUMBER = re.compile(
    rf"""
    (?P<sign>[-+]?) \s* (?:[A-Z]{{0,3}}[$€£¥₹₩₽]|(?:USD|EUR|GBP|INR|Rs\.?)(?=[ 0-9]))? \s* (?P<sign_after>-?) \s*
    (?:(?P<whole>[0-9]+)\s+(?=[0-9]+\s*/))?
    (?P<number>{_DECIMAL})
    (?:[eE](?P<exponent>[-+]?[0-9]+))?
    (?:\s*/\s*(?P<denominator>{_DIGITS}))?
    (?P<rest>.*)
    """,
    re.VERBOSE,
)
_UNIT_EXPONENT = re.compile(r"(?<=[A-Za-z])\s*\^\s*\{?\s*-?[1-9]\s*\}?")
_UNIT_LETTERS = frozenset("mgslhdtJNWVKCFAL")
_LONE_LETTER = re.compile(r"\s*[-/]?\s*([A-Za-z])(?![A-Za-z'’])(?!\s+[A-Za-z]{2})")
_MATHEMATICS = re.compile(
    r"\s*[!⁰¹²³⁴-⁹]|\s*-?(?:pi|squared|cubed|factorial|and an? (?:half|third|quarter))\b"
    r"|.*[0-9\\^_+*=<>±×÷√∞≤≥≈Α-Ψα-λν-ω]"
)
"""In what follows a number; µ and Ω are units, but then stand alone. A `!` further on ends a sentence."""
_SCALE = re.compile(r"\s*(hundred|thousand|million|billion|trillion)\b", re.IGNORECASE)
_SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}


def parse_number(text: str) -> Fraction | None:
    """The exact value; None for all that is not one number, perhaps with words or a unit after it."""
    if len(text) > _MAX_CHARS:
        return None
    match = _NUMBER.fullmatch(_plain(text))
    if match is None or not _is_unit(match["rest"]):
        return None
    exponent = int(match["exponent"] or 0)
    if abs(exponent) > _MAX_EXPONENT:
        return None
    value = _decimal(match["number"]) * Fraction(10) ** exponent
    if match["denominator"]:
        denominator = _decimal(match["denominator"])
        if not denominator:
            return None
        value /= denominator
    value += int(match["whole"] or 0)
    if scale := _SCALE.match(match["rest"]):
        value *= _SCALES[scale[1].lower()]
    return -value if (match["sign"] + match["sign_after"]).count("-") == 1 else value


def _plain(text: str) -> str:
    """Without Markdown and LaTeX, as far as they only dress a number."""
    for spelling, plain in _SPELLINGS:
        text = spelling.sub(plain, text.strip())
    text = _REPEATING.sub(_as_fraction, _ungrouped(text))
    text = _VULGAR_FRACTION.sub(lambda match: f" {unicodedata.normalize('NFKC', match[0]).replace('⁄', '/')}", text)
    text = _FRACTION.sub(lambda match: f" {match[1] or match[2]}/{match[3] or match[4]}", text)
    for _ in range(2):  # a command in a command
        text = _TEXT_COMMAND.sub(r"\1", _EMPHASIS.sub(r"\2", text))
    text = text.strip("*` ")  # emphasis that began before the mark
    text = _POWER_OF_TEN.sub(r"e\1", _NAME.sub("", text, count=1) if _NAME.match(text) else text)
    text = _BARE_POWER_OF_TEN.sub(r"\g<1>1e\2", text)
    text = re.sub(r"^\{(.*)\}$", r"\1", text.strip().strip("$").strip())
    return re.sub(r"\s+", " ", text).strip()


def _ungrouped(text: str) -> str:
    """Thousands as other countries write them, where that can be nothing else."""
    text = _GROUPED_BY_POINTS.sub(lambda match: match[0].replace(".", "").replace(",", "."), text)
    text = _GROUPED_BY_BLANKS.sub(lambda match: re.sub("[ '’]", "", match[0]).replace(",", "."), text)
    return _GROUPED_BY_LAKHS.sub(lambda match: match[0].replace(",", ""), text)


def _as_fraction(repeating: re.Match[str]) -> str:
    """`0.1(6)` as `15/90`."""
    once, again = repeating[2], repeating[3] or repeating[4]
    start, end = int(repeating[1] + once), int(repeating[1] + once + again)
    return f"{end - start}/{(10 ** len(again) - 1) * 10 ** len(once)}"


def _decimal(text: str) -> Fraction:
    return Fraction(text.replace(",", "").rstrip("."))


def _is_unit(rest: str) -> bool:
    """Words, a unit or punctuation; mathematics would make the number another one."""
    rest = _UNIT_EXPONENT.sub("", rest)
    letter = _LONE_LETTER.match(rest)
    return not _MATHEMATICS.match(rest) and (letter is None or letter[1] in _UNIT_LETTERS)
