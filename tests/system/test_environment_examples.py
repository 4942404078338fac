"""The examples through `asyncrl launch`, as a reader runs them: what they say is learned is learned."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from tests.support.launch import STAND_IN, Launched

pytestmark = pytest.mark.system


def test_the_calculator_is_called_more_and_more_also_when_the_generator_dies_on_the_way(
    start: Callable[..., Launched],
) -> None:
    shorter = ["model.warmup_steps=150", "run.steps=20", "run.eval_every=20", "run.eval_prompts=32"]
    run = start("calculator", "--config", "examples/calculator.yaml", *shorter, "learner.batch_size=16")
    run.wait_for_step(4)
    os.kill(run.pid_of("generator-0"), signal.SIGKILL)
    assert run.wait() == 0, run.output
    _, *rows = run.rows()  # the first is the evaluation before the first step
    assert [row["step"] for row in rows] == list(range(1, 21))
    assert all(row["staleness/violations"] == 0 and row["reward/quarantined"] == 0 for row in rows)
    before, after = rows[0], rows[-1]
    assert before["reward/accuracy"] < 0.4  # type: ignore[operator]
    assert after["reward/accuracy"] > before["reward/accuracy"] + 0.3  # type: ignore[operator]
    assert after["environment/turns_mean"] > before["environment/turns_mean"] + 0.3  # type: ignore[operator]


@pytest.mark.parametrize(("name", "package"), [("reasoning_gym", "reasoning_gym"), ("verifiers_doubling", "verifiers")])
def test_the_examples_of_other_packages_train(start: Callable[..., Launched], name: str, package: str) -> None:
    pytest.importorskip(package, reason="its extra is not installed")
    quick = [STAND_IN, "run.steps=2", "run.eval_every=0", "data.eval=null", "learner.batch_size=4"]
    run = start(name, "--config", f"examples/{name}.yaml", *quick, "algorithm.group_size=4", "model.warmup_steps=5")
    assert run.wait() == 0, run.output
    rows = run.rows()
    assert [row["step"] for row in rows] == [1, 2]
    assert all(row["reward/quarantined"] == 0 and row["environment/turns_mean"] >= 1 for row in rows)  # type: ignore[operator]
