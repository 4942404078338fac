"""The examples as a user runs them, each in a folder of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import asyncrl
from tests.support.installed import install_wheel
from tests.support.launch import DEADLINE_S, ROOT, STAND_IN

pytestmark = pytest.mark.system

QUICK = [STAND_IN, "learner.batch_size=8", "algorithm.group_size=4", "model.warmup_steps=100"]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a fresh environment with the wheel."""
    return install_wheel(tmp_path_factory.mktemp("installed"))


def run_example(python: Path, name: str, folder: Path, *arguments: str) -> str:
    """In a folder outside of the checkout, which has a copy of the example and the stand-in engine's package."""
    shutil.copy(ROOT / "examples" / name, folder)
    (folder / "bench").symlink_to(ROOT / "bench")
    result = subprocess.run(
        [str(python), name, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(folder)},
        timeout=DEADLINE_S,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_a_script_trains_with_a_reward_of_its_own_and_reads_its_run(python: Path, tmp_path: Path) -> None:
    output = run_example(python, "train.py", tmp_path, *QUICK, "run.steps=4", "run.name=mine")
    run = asyncrl.Run(tmp_path / "runs" / "mine")
    assert run.config.reward.terms[0].function == f"{tmp_path / 'train.py'}:near"
    assert str(run.metrics().column("reward/mean")[-1].as_py()) in output.splitlines()[-1]
    assert run.prompts().column("state").to_pylist().count("trained") == 4 * 8
    assert run.checkpoints().column("step").to_pylist() == [4]


def test_a_script_that_launches_without_a_guard_is_refused_before_anything_starts(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    unguarded = (ROOT / "examples" / "train.py").read_text().replace('if __name__ == "__main__":', "if True:")
    script.write_text(unguarded)
    result = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert result.returncode == 1
    assert "starting Ray" not in result.stdout
    assert 'put the call of launch under `if __name__ == "__main__":`' in result.stderr


def test_the_loop_in_one_file_is_on_policy_at_first_then_as_stale_as_it_says(python: Path, tmp_path: Path) -> None:
    steps = [
        line.split() for line in run_example(python, "loop.py", tmp_path, "4").splitlines() if line.startswith("step")
    ]
    figures = [dict(zip(words[2::2], map(float, words[3::2]), strict=True)) for words in steps]
    assert [step["lag"] for step in figures] == [0, 1, 2, 2]
    assert figures[0]["ratio"] == 1
    assert all(0 < abs(step["ratio"] - 1) < 0.5 for step in figures[1:])
    assert 0.2 < figures[0]["reward"] < 0.8  # the warm-up left something to learn
