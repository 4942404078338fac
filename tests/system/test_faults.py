"""Faults in a live run: real signals to real processes."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable

import pytest

from asyncrl import cli
from tests.support.launch import (
    STAND_IN,
    Launched,
    assert_all_gone,
    assert_exact,
    engine_core,
    freeze_behind_a_checkpoint,
    quick,
    role_processes,
)

pytestmark = pytest.mark.system


@pytest.mark.parametrize("role", ["learner-1", "replay"])
def test_a_role_that_is_killed_ends_the_run_with_its_name(start: Callable[..., Launched], role: str) -> None:
    never = [f"{part}.max_restarts=0" for part in ("generator", "learner", "replay")]
    run = start(f"kill-{role}", "--learners", "2", *quick(10_000, "run.eval_every=0", STAND_IN, *never))
    run.wait_for_step(3)
    processes = role_processes(run)
    os.kill(run.pid_of(role), signal.SIGKILL)
    assert run.wait() == 1, run.output
    assert f"the run failed: {role}" in run.output
    assert f"last lines of {role}.log" in run.output
    assert_all_gone(processes)


def test_a_generator_whose_engine_core_died_is_started_again_and_the_run_has_all_its_steps(
    start: Callable[..., Launched],
) -> None:
    run = start("restart", "--generators", "2", *quick(10_000, "run.eval_every=0"))
    both = run.wait_for_row("generator/num_serving", 2)
    engine_core(run, "generator-1").kill()  # often in mid-publish
    run.wait_for_output("generator-1 failed: ")
    one = run.wait_for_row("generator/num_serving", 1, after=both)
    run.wait_for_row("generator/num_serving", 2, after=one)
    run.process.send_signal(signal.SIGINT)
    assert run.wait() == 130, run.output
    assert "; restart 1 of 3" in run.output
    assert_exact(run, len(run.rows()))


def test_a_role_that_is_frozen_is_named_when_its_heartbeats_stop(start: Callable[..., Launched]) -> None:
    limits = ("run.heartbeat_timeout_s=5", "generator.max_restarts=0")
    run = start("frozen", *quick(10_000, "run.eval_every=0", STAND_IN, *limits))
    run.wait_for_step(3)
    processes = role_processes(run)
    os.kill(run.pid_of("generator-0"), signal.SIGSTOP)
    assert run.wait() == 1, run.output
    assert "generator-0 was silent for 5 s" in run.output
    assert_all_gone(processes)


def test_a_role_that_hangs_with_live_heartbeats_ends_the_run_with_every_roles_stacks(
    start: Callable[..., Launched],
) -> None:
    run = start("hangs", *quick(10_000, "run.eval_every=0", "run.no_progress_timeout_s=10"))
    run.wait_for_step(3)
    processes = role_processes(run)
    engine_core(run, "generator-0").suspend()
    assert run.wait() == 1, run.output
    assert "waited 10 s for a group, a step, a publish or an evaluation (run.no_progress_timeout_s)" in run.output
    folder = next((run.run_dir / "diagnosis").iterdir())
    assert str(folder) in run.output
    assert "asyncrl/learn/worker.py" in (folder / "learner-0.stacks.txt").read_text()
    assert {path.name for path in folder.iterdir()} == {
        "state.json",
        *(f"{role}.stacks.txt" for role in ("replay", "generator-0", "learner-0")),
    }
    queue = json.loads((folder / "state.json").read_text())["roles"]["replay"]["metrics"]
    assert {"queue/depth", "queue/leased"} <= queue.keys()
    assert_all_gone(processes)


def test_ctrl_c_once_stops_cleanly_with_a_checkpoint(start: Callable[..., Launched]) -> None:
    run = start("interrupt", *quick(10_000, "run.eval_every=0", STAND_IN))
    run.wait_for_step(3)
    processes = role_processes(run)
    run.process.send_signal(signal.SIGINT)
    assert run.wait() == 130, run.output
    assert list((run.run_dir / "checkpoints").glob("step_*"))
    assert_all_gone(processes)


def test_ctrl_c_twice_ends_the_run_at_once(start: Callable[..., Launched]) -> None:
    run = start("interrupt-twice", *quick(10_000, "run.eval_every=0", STAND_IN))
    run.wait_for_step(3)
    processes = role_processes(run)
    os.kill(run.pid_of("learner-0"), signal.SIGSTOP)  # so that a clean stop would take its whole deadline
    run.process.send_signal(signal.SIGINT)
    run.wait_for_output("stopping with a checkpoint")
    run.process.send_signal(signal.SIGINT)
    assert run.wait() == 130, run.output
    assert "stopped at once" in run.output
    assert_all_gone(processes)


def test_whoever_dies_learner_replay_or_launcher_every_prompt_is_trained_once(start: Callable[..., Launched]) -> None:
    limits = ("run.heartbeat_timeout_s=5", "run.stop_timeout_s=5")
    run = start("all-die", "--learners", "2", *quick(10_000, "run.eval_every=0", "run.save_every=6", STAND_IN, *limits))
    died = "failed: its process died (killed, crashed or out of memory)"
    run.wait_for_step(8)
    saved = freeze_behind_a_checkpoint(run)
    os.kill(run.pid_of("learner-1"), signal.SIGKILL)
    run.wait_for_output(f"learner-1 {died}; learners: restart 1 of 3")
    run.wait_for_output(f"learner-0: going over the steps {saved + 1} to ")
    run.wait_for_more_steps(8)
    os.kill(run.pid_of("replay"), signal.SIGKILL)
    run.wait_for_output(f"replay {died}; replay: restart 1 of 3")
    run.wait_for_more_steps(8)
    os.kill(run.pid_of("replay"), signal.SIGSTOP)
    run.wait_for_output(
        "replay was silent for 5 s (run.heartbeat_timeout_s) in phase 'serving'; replay: restart 2 of 3"
    )
    run.wait_for_more_steps(8)
    processes = role_processes(run)
    run.process.kill()
    assert_all_gone(processes)

    num_steps = max(int(path.name[-6:]) for path in (run.run_dir / "checkpoints").glob("step_*")) + 10
    roles = ("learner.count=1", "generator.count=2")
    resumed = start("all-die", "--resume", str(run.run_dir), f"run.steps={num_steps}", *roles)
    assert resumed.wait() == 0, resumed.output
    assert_exact(resumed, num_steps)
    assert cli.main(["launch", "--resume", str(run.run_dir), f"run.steps={num_steps + 1}", "learner.lr=1"]) == 2
