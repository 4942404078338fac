"""Launches runs for the system tests; nothing of a run outlives its test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.launch import Launched, launch


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One parent for all runs, so that they share the tiny model."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def start(runs: Path) -> Iterator[Callable[..., Launched]]:
    """Launches a short run of the quickstart; nothing of it outlives the test."""
    launched: list[Launched] = []

    def start_one(name: str, *arguments: str) -> Launched:
        launched.append(launch(runs, *arguments, name=name))
        return launched[-1]

    yield start_one
    for run in launched:
        if run.process.poll() is None:
            run.process.kill()
