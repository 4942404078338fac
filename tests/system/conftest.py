"""Launches runs for the system tests; nothing of a run outlives its test."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.launch import Launched

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One parent for all runs, so that they share the tiny model."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def start(runs: Path) -> Iterator[Callable[..., Launched]]:
    """Launches a short run of the quickstart; nothing of it outlives the test."""
    launched: list[Launched] = []

    def start_one(name: str, *arguments: str) -> Launched:
        run_dir, output_file = runs / name, runs / f"{name}.txt"
        where = [] if "--resume" in arguments else ["--run-dir", str(run_dir)]
        command = [sys.executable, "-m", "asyncrl", "launch", *where, *arguments]
        with output_file.open("a") as output:
            process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, text=True)
        launched.append(Launched(process, run_dir, output_file))
        return launched[-1]

    yield start_one
    for run in launched:
        if run.process.poll() is None:
            run.process.kill()
