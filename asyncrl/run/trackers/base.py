"""What a tracker is: one more place where the rows of a run go."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

MetricValue = float | str | list[int] | list[float]
"""As `run/metrics.py` says."""


class Tracker(Protocol):
    """Takes the rows in the order of their steps. It must neither block for long nor fail for want of a network."""

    def write(self, step: int, metrics: Mapping[str, MetricValue]) -> None:
        """The figures of one step; a step may come in several parts."""

    def close(self) -> None: ...


def shown(metrics: Mapping[str, MetricValue], histogram: Callable[..., Any]) -> dict[str, Any]:
    """As W&B and those who follow it take a row: a list of counts as a histogram of 0, 1, 2, …; None when it is empty.

    Args:
        histogram: the tracker's class, which takes `np_histogram=(counts, edges)`.
    """
    return {key: _histogram(value, histogram) if isinstance(value, list) else value for key, value in metrics.items()}


def _histogram(counts: list[int] | list[float], histogram: Callable[..., Any]) -> Any:
    return histogram(np_histogram=(np.array(counts), np.arange(len(counts) + 1) - 0.5)) if counts else None
