"""Which trackers a run has, by its configuration."""

from __future__ import annotations

from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

from asyncrl.config.schema import Config, RunConfig
from asyncrl.errors import ConfigError
from asyncrl.run.trackers.base import Tracker
from asyncrl.run.trackers.prometheus import PrometheusEndpoint


def check_trackers(run: RunConfig) -> None:
    """Refuses a tracker whose package is missing, and a port that is in use.

    Raises:
        ConfigError: names the key, and the extra that brings the package.
    """
    needed = {f"run.trackers: {name}": (name, name in run.trackers) for name in ("wandb", "trackio")}
    needed["run.prometheus_port"] = ("prometheus_client", run.prometheus_port is not None)
    for key, (package, is_asked_for) in needed.items():
        if is_asked_for and find_spec(package) is None:
            extra = package.removesuffix("_client")
            raise ConfigError(f"{key}: {package} is not installed; install the extra: pip install 'asyncrl[{extra}]'")
    if run.prometheus_port is not None:
        PrometheusEndpoint(run.prometheus_port).close()


def open_trackers(config: Config, run_dir: Path, resume_after: int | None) -> list[Tracker]:
    """All of them, or none.

    Args:
        resume_after: the step of the checkpoint that the run goes on from.

    Raises:
        ConfigError: a tracker that cannot be opened.
    """
    trackers: list[Tracker] = []
    with ExitStack() as opened:
        if config.run.prometheus_port is not None:
            trackers.append(PrometheusEndpoint(config.run.prometheus_port))
            opened.callback(trackers[-1].close)
        if "wandb" in config.run.trackers:
            from asyncrl.run.trackers.weights_and_biases import WeightsAndBiases

            trackers.append(WeightsAndBiases(run_dir, config))
            opened.callback(trackers[-1].close)
        if "trackio" in config.run.trackers:
            from asyncrl.run.trackers.trackio import Trackio

            trackers.append(Trackio(run_dir, config, is_resumed=resume_after is not None))
            opened.callback(trackers[-1].close)
        if "tensorboard" in config.run.trackers:
            from asyncrl.run.trackers.tensorboard import TensorBoard

            trackers.append(TensorBoard(run_dir, resume_after))
        opened.pop_all()
    return trackers
