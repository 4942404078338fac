"""RUN/tensorboard: scalars, histograms and texts as TensorBoard shows them.

Written with TensorBoard's own package. torch's SummaryWriter makes the same files, but loads torch for it, and nothing
else in the launcher needs that.
"""

from __future__ import annotations

import math
import textwrap
import time
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
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event: Any = Event
        self._file: Any = EventFileWriter(str(run_dir / "tensorboard"))
        if resume_after is not None:
            begins = SessionLog(status=SessionLog.START)
            for event in (Event(file_version="brain.Event:2"), Event(session_log=begins)):
                self._add(resume_after + 1, event)

    def write(self, step: int, metrics: Mapping[str, MetricValue]) -> None:
        values = [value for key, metric in metrics.items() if (value := _value(key, metric)) is not None]
        self._add(step, self._event(summary={"value": values}))
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _add(self, step: int, event: Any) -> None:
        event.step, event.wall_time = step, time.time()
        self._file.add_event(event)


def _value(key: str, metric: MetricValue) -> dict[str, Any] | None:
    """A `Summary.Value`; None when there is nothing to show."""
    if isinstance(metric, str):
        return _text(key, _verbatim(metric))
    if isinstance(metric, list):
        return _histogram(key, metric) if sum(metric) else None
    return {"tag": key, "simple_value": metric} if math.isfinite(metric) else None


def _verbatim(text: str) -> str:
    """As a block of code: TensorBoard takes text for Markdown, whose images a browser would load from anywhere."""
    return textwrap.indent(plain(text), "    ", lambda line: True)


def _text(key: str, text: str) -> dict[str, Any]:
    shape = {"dim": [{"size": 1}]}
    return {
        "tag": f"{key}/text_summary",
        "metadata": {"plugin_data": {"plugin_name": "text"}},
        "tensor": {"dtype": "DT_STRING", "string_val": [text.encode()], "tensor_shape": shape},
    }


def _histogram(key: str, counts: Sequence[float]) -> dict[str, Any]:
    """Of the values 0, 1, 2, …"""
    histogram = {
        "min": 0,
        "max": len(counts) - 1,
        "num": sum(counts),
        "sum": sum(value * count for value, count in enumerate(counts)),
        "sum_squares": sum(value**2 * count for value, count in enumerate(counts)),
        "bucket_limit": [value + 0.5 for value in range(len(counts))],
        "bucket": counts,
    }
    return {"tag": key, "histo": histogram}
