"""RUN/lock: one launch works on a run at a time.

The launcher holds it, and so does each role, as long as the role's process or a child of it lives. RUN/launcher.lock is
the launcher's alone: roles that are about to end are waited for, another launcher is not.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from asyncrl.errors import ConfigError
from asyncrl.run.directory import lock_file

POLL_S = 0.2
LAUNCHER_LOCK = "launcher.lock"


@contextmanager
def claim(run_dir: Path) -> Iterator[None]:
    """This process is the run's launcher meanwhile.

    Raises:
        ConfigError: the run has a launcher that lives.
    """
    descriptor = os.open(run_dir / LAUNCHER_LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"{run_dir}: the run is live: another `asyncrl launch` has it; stop that first"
            ) from error
        yield
    finally:
        os.close(descriptor)


@contextmanager
def lock(run_dir: Path, timeout_s: float, console: Console) -> Iterator[None]:
    """Waits until no process of an earlier launch is left. Keeps other launches out while its body runs.

    Raises:
        ConfigError: the run is live, or its roles have not ended in time.
    """
    descriptor = _open_lock(run_dir)
    deadline_s = time.monotonic() + timeout_s
    is_told = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError as error:
            if time.monotonic() > deadline_s:
                os.close(descriptor)
                raise ConfigError(f"{run_dir}: the run is live; stop it first (waited {timeout_s:.0f} s)") from error
        if not is_told:
            console.print("waiting for the roles of the earlier launch to end", highlight=False)
            is_told = True
        time.sleep(POLL_S)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    try:
        yield
    finally:
        os.close(descriptor)


def share_lock(run_dir: Path) -> None:
    """Called by a role: while its process or a child of it lives, no other launch works on the run."""
    fcntl.flock(_open_lock(run_dir), fcntl.LOCK_SH)


def _open_lock(run_dir: Path) -> int:
    return os.open(lock_file(run_dir), os.O_RDWR | os.O_CREAT, 0o600)
