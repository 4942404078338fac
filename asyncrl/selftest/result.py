"""What a check found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from asyncrl.selftest.system import System

Figures = dict[str, float | int | str]
"""By their names, with the unit in the name."""

Status = Literal["passed", "failed", "skipped"]


class NotHereError(Exception):
    """A check that says nothing here; the message says why. It is skipped."""


@dataclass(frozen=True)
class Check:
    """One check of a running system."""

    name: str
    run: Callable[[System], Figures]
    """Raises SelftestError with what is wrong, or NotHereError."""
    advice: str
    """What to do when it fails."""


@dataclass(frozen=True)
class Result:
    """What became of a check."""

    check: str
    status: Status
    seconds: float
    figures: Figures = field(default_factory=dict)
    reason: str = ""
    """Why it failed or was skipped."""
    advice: str = ""
    """What to do about it; empty when it passed."""
