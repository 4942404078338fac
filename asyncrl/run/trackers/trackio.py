"""Trackio: the same figures under the same names, in a file of this machine: `trackio show --project asyncrl`.

TRACKIO_DIR says where the file is. Trackio cannot take rows back: after `--resume` the steps since the checkpoint are
there twice.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

from asyncrl.config.schema import Config
from asyncrl.run.trackers.base import MetricValue, shown


class Trackio:
    """One Trackio run for a run directory, also when it is resumed. A thread of Trackio's own writes.

    Args:
        is_resumed: whether the rows go on from those of an earlier launch.
    """

    def __init__(self, run_dir: Path, config: Config, is_resumed: bool) -> None:
        import trackio

        self._trackio: Any = trackio
        with _quietly():
            self._run: Any = trackio.init(
                project=os.environ.get("TRACKIO_PROJECT", "asyncrl"),
                name=run_dir.name,
                config=asdict(config),
                resume="allow" if is_resumed else "never",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    def write(self, step: int, metrics: Mapping[str, MetricValue]) -> None:
        self._run.log(shown(metrics, self._trackio.Histogram), step=step)

    def close(self) -> None:
        with _quietly():
            self._trackio.finish()


def _quietly() -> redirect_stdout[io.StringIO]:
    """Trackio prints; the console is the run's own."""
    return redirect_stdout(io.StringIO())
