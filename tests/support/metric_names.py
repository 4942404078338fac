"""The metrics that docs/metrics.md explains."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


def documented() -> set[str]:
    """The first cell of every row of a table that names a metric."""
    return set(re.findall(r"^\| `([a-z]+/[^`]+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE))


def as_documented(name: str) -> str:
    """The families by lag are explained once, and so are every k, data set, engine and reward term."""
    name = re.sub(r"^(lag_\d\w*|(engine/[^/]+/)?mismatch)/", "policy/", name)
    return re.sub(r"(^|/)(data|term|engine)/[^/]+", r"\1\2/NAME", re.sub(r"@\d+$", "@k", name))


def undocumented(names: Iterable[str]) -> set[str]:
    """Names of a row that the page lacks."""
    return {name for name in names if name != "step" and as_documented(name) not in documented()}
