from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from asyncrl.errors import ConfigError
from asyncrl.run.lock import lock, share_lock


def held(run_dir: Path) -> bool:
    try:
        with lock(run_dir, timeout_s=0.0, console=Console(file=io.StringIO())):
            return False
    except ConfigError:
        return True


def test_a_run_is_locked_during_a_launch_and_free_for_the_same_process_after_it(tmp_path: Path) -> None:
    with lock(tmp_path, timeout_s=0.0, console=Console(file=io.StringIO())):
        assert held(tmp_path)
    assert not held(tmp_path)


def test_a_launch_that_fails_lets_go_of_the_lock(tmp_path: Path) -> None:
    with pytest.raises(KeyError), lock(tmp_path, timeout_s=0.0, console=Console(file=io.StringIO())):
        raise KeyError
    assert not held(tmp_path)


def test_a_role_keeps_the_lock_when_the_launcher_is_gone(tmp_path: Path) -> None:
    with lock(tmp_path, timeout_s=0.0, console=Console(file=io.StringIO())):
        share_lock(tmp_path)
    assert held(tmp_path)
