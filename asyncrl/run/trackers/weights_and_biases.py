"""Weights & Biases: the same figures under the same names. WANDB_MODE=offline keeps them in RUN/wandb for `wandb sync`.

W&B cannot take rows back: after `--resume` the steps since the checkpoint are there twice. Its charts go by `step`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from asyncrl.config.schema import Config
from asyncrl.errors import ConfigError
from asyncrl.run.trackers.base import MetricValue, shown


class WeightsAndBiases:
    """One W&B run for a run directory, also when it is resumed. Uploading is the work of a process of W&B's own.

    Raises:
        ConfigError: W&B refuses, as without a login.
    """

    def __init__(self, run_dir: Path, config: Config) -> None:
        import wandb

        self._wandb: Any = wandb
        try:
            self._run: Any = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "asyncrl"),
                name=run_dir.name,
                id=hashlib.sha256(os.fsencode(run_dir)).hexdigest()[:16],
                resume="allow",
                dir=run_dir,
                config=asdict(config),
                settings=wandb.Settings(console="off"),
            )
        except wandb.Error as error:
            raise ConfigError(
                f"run.trackers: wandb: {error}; run `wandb login`, or set WANDB_MODE=offline, or leave wandb out"
            ) from error
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, metrics: Mapping[str, MetricValue]) -> None:
        self._run.log({"step": step, **shown(metrics, self._wandb.Histogram)})

    def close(self) -> None:
        self._run.finish()
