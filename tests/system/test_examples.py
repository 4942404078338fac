"""The examples as a user runs them, each in a folder of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import asyncrl
from tests.support.launch import DEADLINE_S, STAND_IN
from tests.system.conftest import ROOT

pytestmark = pytest.mark.system

QUICK = [STAND_IN, "learner.batch_size=8", "algorithm.group_size=4", "model.warmup_steps=100"]


def run_example(name: str, folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}  # for the stand-in; asyncrl itself is installed
    command = [sys.executable, str(ROOT / "examples" / name), *arguments]
    result = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env=environment, timeout=DEADLINE_S, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_a_script_trains_with_a_reward_of_its_own_and_reads_its_run(tmp_path: Path) -> None:
    output = run_example("train.py", tmp_path, *QUICK, "run.steps=4", "run.name=mine")
    run = asyncrl.Run(tmp_path / "runs" / "mine")
    assert run.config.reward.terms[0].function == f"{ROOT / 'examples' / 'train.py'}:near"
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


def test_the_loop_in_one_file_is_on_policy_at_first_then_as_stale_as_it_says(tmp_path: Path) -> None:
    steps = [line.split() for line in run_example("loop.py", tmp_path, "4").splitlines() if line.startswith("step")]
    figures = [dict(zip(words[2::2], map(float, words[3::2]), strict=True)) for words in steps]
    assert [step["lag"] for step in figures] == [0, 1, 2, 2]
    assert figures[0]["ratio"] == 1
    assert all(0 < abs(step["ratio"] - 1) < 0.5 for step in figures[1:])
    assert 0.2 < figures[0]["reward"] < 0.8  # the warm-up left something to learn
