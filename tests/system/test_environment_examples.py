"""The examples through `asyncrl launch`, as a reader runs them: what they say is learned is learned."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from tests.support.launch import Launched

pytestmark = pytest.mark.system


def test_the_calculator_is_called_more_and_more_also_when_the_generator_dies_on_the_way(
    start: Callable[..., Launched],
) -> None:
    run = start("calculator", "--config", "examples/calculator.yaml", "run.steps=20", "run.eval_every=20")
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
