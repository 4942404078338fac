"""A server of OpenEnv plays a run's episodes, and those that ended outlive the generator that sampled them."""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from asyncrl.config.load import load
from asyncrl.data.tiny_model import build_tiny_model
from asyncrl.environments.resolve import environment_rows
from asyncrl.transport.messages.rollouts import GroupHeader
from tests.support.launch import STAND_IN, Launched

pytestmark = pytest.mark.system

GROUP_SIZE = 4


def test_of_a_generator_killed_in_mid_group_another_takes_the_episodes_that_ended(
    start: Callable[..., Launched], tmp_path: Path
) -> None:
    pytest.importorskip("openenv", reason="the extra `openenv` is not installed")
    from tests.support.openenv_guess import Hold, serve

    guessing = load("examples/number_guessing.yaml")
    model = build_tiny_model(tmp_path, environment_rows(guessing.environment, "warmup", 0), warmup_steps=5, seed=0)
    hold = Hold()
    with serve(hold=hold) as url:
        run = start(
            "openenv",
            *["--config", "examples/number_guessing.yaml", "--generators", "2", STAND_IN, f"model.path={model}"],
            *["run.steps=10000", "run.eval_every=0", "data.eval=null", "learner.batch_size=4"],
            *[f"algorithm.group_size={GROUP_SIZE}", "generator.max_groups_in_flight=1", "environment.num_workers=2"],
            *["replay.max_staleness=50", "replay.stragglers=window", "replay.window=120"],  # others overtake the held
            f"environment.name=openenv:{url}",
            "environment.args={action: text, observation: hint, prompt: 'guess:', messages: false}",
            "environment.time_limit_s=60",
        )
        run.wait_for_step(2)
        hold.begin()
        run.wait_until(lambda: hold.seed >= 0, "session that is held")
        num_rows = len(run.rows()) + 5
        run.wait_until(
            lambda: any(row["queue/kept"] >= 1 for row in run.rows()[num_rows:]),  # type: ignore[operator]
            "episode of its group that replay keeps",
        )
        index, generator = oldest_lease(run)
        os.kill(run.pid_of(generator), signal.SIGKILL)
        num_ended = hold.num_ended[hold.seed]
        hold.end()
        run.wait_until(
            lambda: run.rows()[-1]["queue/handed_on"] >= num_ended,  # type: ignore[operator]
            "episodes that were handed on",
        )
        run.wait_until(lambda: stored_group(run, index) is not None, f"group of prompt {index}")
        run.process.send_signal(signal.SIGINT)
        header, versions = stored_group(run, index)  # type: ignore[misc]
        assert run.wait() == 130, run.output
    assert 1 <= num_ended < GROUP_SIZE
    assert hold.num_begun[hold.seed] == GROUP_SIZE + GROUP_SIZE - num_ended, "what had ended was not played again"
    assert not np.isnan(header.rewards).any()
    newest = [episode.max() for episode in np.split(versions, np.cumsum(header.lengths)[:-1])]
    before, after = sorted(newest)[:num_ended], sorted(newest)[num_ended:]
    assert max(before) < min(after), "what was kept has the versions that sampled it"
    assert all(row["reward/quarantined"] == 0 and row["staleness/violations"] == 0 for row in run.rows())


def oldest_lease(run: Launched) -> tuple[int, str]:
    """The prompt that is held, and by whom."""
    ledger = sqlite3.connect(run.run_dir / "ledger.sqlite")
    query = "SELECT idx, generator FROM prompts WHERE state = 'leased' ORDER BY idx LIMIT 1"
    found: tuple[int, str] = ledger.execute(query).fetchone()
    return found


def stored_group(run: Launched, index: int) -> tuple[GroupHeader, np.ndarray] | None:
    """Header and versions of its tokens, where the ledger has them."""
    ledger = sqlite3.connect(run.run_dir / "ledger.sqlite")
    found = ledger.execute("SELECT header, versions FROM groups WHERE idx = ?", (index,)).fetchone()
    return found and (msgspec.msgpack.decode(found[0], type=GroupHeader), np.frombuffer(found[1], np.int32))
