"""The trace of another trainer's run stands for what it says."""

from __future__ import annotations

import pytest

from bench.planning.emulation import predict
from bench.planning.trace import BATCH_SIZE, GROUP_SIZE, SYNC_STEP_S, UPDATE_S, settings


def test_the_traces_own_steps_take_as_long_as_published() -> None:
    speed = 50.0
    sync, asynchronous = settings(speed, num_steps=16, num_sync_steps=4, staleness=3)
    step_s = [BATCH_SIZE * GROUP_SIZE / predict(setting).samples_per_s * speed for setting in (sync, asynchronous)]
    assert step_s[0] == pytest.approx(SYNC_STEP_S, rel=0.02)
    assert step_s[1] >= UPDATE_S * 0.999
