"""RUN/tensorboard: scalars, histograms and texts as TensorBoard shows them."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from asyncrl.run.plain_text import plain
from asyncrl.run.trackers.base import MetricValue


class TensorBoard:
    """Writes event files.

    Args:
        resume_after: rows of later steps were written by a timeline that is gone; they are hidden.
    """

    def __init__(self, run_dir: Path, resume_after: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter  # loads torch, which readers of metrics do without

        purge_step = None if resume_after is None else resume_after + 1
        self._writer: Any = SummaryWriter(str(run_dir / "tensorboard"), purge_step=purge_step)

    def write(self, step: int, metrics: Mapping[str, MetricValue]) -> None:
        for key, value in metrics.items():
            if isinstance(value, str):
                self._writer.add_text(key, _verbatim(value), step)
            elif isinstance(value, list):
                self._add_histogram(key, value, step)
            elif math.isfinite(value):
                self._writer.add_scalar(key, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def _add_histogram(self, key: str, counts: Sequence[float], step: int) -> None:
        total = sum(counts)
        if total == 0:
            return
        self._writer.add_histogram_raw(
            key,
            min=0,
            max=len(counts) - 1,
            num=total,
            sum=sum(value * count for value, count in enumerate(counts)),
            sum_squares=sum(value**2 * count for value, count in enumerate(counts)),
            bucket_limits=[value + 0.5 for value in range(len(counts))],
            bucket_counts=list(counts),
            global_step=step,
        )


def _verbatim(text: str) -> str:
    """As a block of code: TensorBoard takes text for Markdown, whose images a browser would load from anywhere."""
    return textwrap.indent(plain(text), "    ", lambda line: True)
