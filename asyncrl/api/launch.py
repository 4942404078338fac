"""`asyncrl.launch`: a run from a script or a notebook."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from asyncrl.api.reward_names import with_rewards
from asyncrl.api.run import Run
from asyncrl.commands import launch as launcher
from asyncrl.config.load import load
from asyncrl.config.schema import Config
from asyncrl.errors import ConfigError

_under_way = threading.Lock()


def launch(
    config: Config | Sequence[str],
    *,
    rewards: Sequence[Callable[..., Any]] = (),
    run_dir: str | Path | None = None,
    resume: str | Path | None = None,
) -> Run:
    """Trains to the end, as `asyncrl launch` does, and returns the run.

    Args:
        config: a whole configuration, or `key=value` overrides of the defaults (with `resume`: of the run's own).
        rewards: functions that take the place of `reward.terms`, each with weight 1. The first one decides what counts
            as correct. Each must be importable: defined at the top level of a module or of the script.
        run_dir: the run's directory; by default `run.dir`/`run.name`.
        resume: the directory of a run to go on with.

    Raises:
        UserError: bad input; nothing was started.
        RunError: the run could not go on.
        KeyboardInterrupt: Ctrl-C stopped the run; it ended with a checkpoint, and `resume` goes on with it.
    """
    if not isinstance(config, Config):
        config = load(None if resume is None else Path(resume) / "config.yaml", list(config))
    config = with_rewards(config, rewards)
    if run_dir is not None:
        path = Path(run_dir)
        config = replace(config, run=replace(config.run, dir=str(path.parent), name=path.name))
    if not _under_way.acquire(blocking=False):
        raise ConfigError(
            "asyncrl.launch was called during a launch. A script whose rewards are its own functions is imported for "
            'them once more: put the call of launch under `if __name__ == "__main__":`'
        )
    try:
        ended = launcher.launch(config, "run", None if resume is None else Path(resume), Console())
    finally:
        _under_way.release()
    if ended.outcome == "interrupted":
        raise KeyboardInterrupt
    return Run(ended.directory)
