"""What a tracker is: one more place where the rows of a run go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

MetricValue = float | str | list[int] | list[float]
"""As `run/metrics.py` says."""


class Tracker(Protocol):
    """Takes the rows in the order of their steps. It must neither block for long nor fail for want of a network."""

    def write(self, step: int, metrics: Mapping[str, MetricValue]) -> None:
        """The figures of one step; a step may come in several parts."""

    def close(self) -> None: ...
