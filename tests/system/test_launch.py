"""`asyncrl launch` as a user runs it: the real parts. Faults are real signals to real processes."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM

from asyncrl import cli
from tests.support.launch import Launched, assert_exact, quick, trained

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
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


def role_processes(run: Launched) -> list[psutil.Process]:
    """Every role with its children: vLLM's engines and workers, reward processes."""
    roles = [psutil.Process(run.pid_of(log.stem)) for log in (run.run_dir / "logs").glob("*-*.log")]
    return [*roles, *(child for role in roles for child in role.children(recursive=True))]


def engine_core(run: Launched, generator: str) -> psutil.Process:
    """The one of the generator's children that has children of its own: vLLM's workers."""
    return next(child for child in psutil.Process(run.pid_of(generator)).children() if child.children())


def assert_all_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert not alive, f"still running: {alive}"


def test_a_run_trains_asynchronously_then_goes_on_from_its_checkpoint_and_exports(
    start: Callable[..., Launched], runs: Path
) -> None:
    first = start("plain", *quick(32, "run.eval_every=6", "run.save_every=15", "replay.max_staleness=2"))
    assert first.wait() == 0, first.output
    rows = first.rows()
    assert [row["step"] for row in rows] == list(range(33))
    lags = [row["staleness/max"] for row in rows[1:]]
    assert max(lags) in (1, 2)
    assert all(row["staleness/violations"] == 0 for row in rows[1:])
    assert {"eval/accuracy"} <= rows[0].keys()
    assert rows[0]["eval/num_versions"] == 1
    assert rows[-1]["eval/num_versions"] == 1
    every_step = set.intersection(*(set(row) for row in rows[1:]))
    assert {"reward/mean", "loss/total", "queue/depth", "time/publish_s"} <= every_step
    # Generators report once a second, so the first rows of a fast machine have no figure of theirs.
    assert "throughput/generator_tokens_per_s" in rows[-1]
    assert list((first.run_dir / "tensorboard").iterdir())
    assert sorted(path.name for path in (first.run_dir / "checkpoints").iterdir()) == [
        "step_000015",
        "step_000030",
        "step_000032",
    ]

    second = start("plain", "--resume", str(first.run_dir), "run.steps=35")
    assert second.wait() == 0, second.output
    assert [row["step"] for row in second.rows()] == list(range(36))
    assert trained(second) == [8] * 35

    assert cli.main(["export", str(first.run_dir), "--out", str(runs / "exported")]) == 0
    assert AutoModelForCausalLM.from_pretrained(runs / "exported").config.model_type == "qwen3"


def test_at_staleness_0_every_token_is_on_policy_and_every_group_of_a_refilled_batch_has_a_signal(
    start: Callable[..., Launched],
) -> None:
    run = start("sync", *quick(5, "run.eval_every=0", "replay.max_staleness=0", "algorithm.zero_variance=refill"))
    assert run.wait() == 0, run.output
    assert [row["staleness/max"] for row in run.rows()] == [0] * 5
    assert all(abs(float(row["policy/kl_behaviour"])) < 1e-9 for row in run.rows())  # type: ignore[arg-type]
    assert all(row["reward/zero_variance_fraction"] == 0 for row in run.rows())
    assert trained(run) == [8] * 5
    counts = sqlite3.connect(run.run_dir / "ledger.sqlite").execute(
        "SELECT count(*) FROM prompts WHERE state = 'filtered'"
    )
    assert counts.fetchone()[0] > 0


def test_a_run_with_an_engine_of_ones_own_trains_on_its_exact_logprobs_and_survives_its_death(
    start: Callable[..., Launched],
) -> None:
    engine = "generator.engine=bench.standin.engine:StandInEngine"
    run = start("own", "--generators", "2", *quick(150, "run.eval_every=0", "replay.max_staleness=0", engine))
    run.wait_for_step(3)
    os.kill(run.pid_of("generator-1"), signal.SIGKILL)
    assert run.wait() == 0, run.output
    assert "generator-1 failed: its process died" in run.output
    assert [row["step"] for row in run.rows()] == list(range(1, 151))
    assert all(abs(float(row["mismatch/ratio_max"]) - 1) < 1e-4 for row in run.rows())  # type: ignore[arg-type]
    assert trained(run) == [8] * 150


def test_four_generators_and_four_learners_run_on_two_cores_while_a_controller_lets_them_run_ahead(
    start: Callable[..., Launched],
) -> None:
    settings = quick(10, "run.eval_every=0", "replay.max_staleness=2", "replay.ess_target=0.5")
    run = start("four", "--generators", "4", "--learners", "4", *settings)
    assert run.wait() == 0, run.output
    assert [row["staleness/eta"] for row in run.rows()] == [0] * 6 + [1] * 4
    assert all(row["staleness/max"] <= row["staleness/eta"] for row in run.rows())  # type: ignore[operator]


def test_a_tensor_parallel_generator_feeds_two_learners(start: Callable[..., Launched]) -> None:
    arguments = ("--generators", "1", "--learners", "2", "generator.tensor_parallel=2")
    run = start("tp", *arguments, *quick(10, "run.eval_every=0"))
    assert run.wait() == 0, run.output
    assert len(run.rows()) == 10


def test_generators_join_and_leave_a_live_run(start: Callable[..., Launched], capsys: pytest.CaptureFixture) -> None:
    run = start("scale", *quick(10_000, "run.eval_every=0"))
    run.wait_for_step(3)
    for number, answer in ((3, "generators: 1 → 3 (generator-1 joins, generator-2 joins)"), (1, "generators: 3 → 1")):
        assert cli.main(["scale", str(run.run_dir), "--generators", str(number)]) == 0
        assert answer in capsys.readouterr().out
        run.wait_until(lambda: run.rows()[-1]["generator/num_serving"] == number, f"{number} generators")  # noqa: B023
    assert cli.main(["scale", str(run.run_dir), "--generators", "0"]) == 2
    run.process.send_signal(signal.SIGINT)
    assert run.wait() == 130, run.output
    assert {"generator-1 has left", "generator-2 has left"} <= set(run.output.splitlines())
    assert " failed" not in run.output
    assert_exact(run, len(run.rows()))


def test_at_staleness_0_a_run_that_was_killed_and_resumed_is_bit_for_bit_the_run_that_was_not(
    start: Callable[..., Launched],
) -> None:
    settings = quick(16, "run.eval_every=0", "run.save_every=8", "replay.max_staleness=0", "run.stop_timeout_s=5")
    whole = start("whole", *settings)
    assert whole.wait() == 0, whole.output
    cut = start("cut", *settings, "run.heartbeat_timeout_s=5")
    cut.wait_for_step(11)
    for process in [psutil.Process(cut.process.pid), *role_processes(cut)]:
        process.kill()
    resumed = start("cut", "--resume", str(cut.run_dir))
    assert resumed.wait() == 0, resumed.output
    assert "going over the steps 9 to 1" in resumed.output
    for key in ("loss/total", "optim/grad_norm", "reward/mean", "policy/entropy", "batch/prompts_crc32"):
        assert [row[key] for row in resumed.rows()] == [row[key] for row in whole.rows()], key
    parameters = [exported_parameters(run) for run in (whole, resumed)]
    assert all(torch.equal(parameters[0][name], parameters[1][name]) for name in parameters[0])


def exported_parameters(run: Launched) -> dict[str, torch.Tensor]:
    out = run.run_dir / "exported"
    assert cli.main(["export", str(run.run_dir), "--out", str(out)]) == 0
    return AutoModelForCausalLM.from_pretrained(out).state_dict()


@pytest.mark.parametrize("role", ["learner-1", "replay"])
def test_a_role_that_is_killed_ends_the_run_with_its_name(start: Callable[..., Launched], role: str) -> None:
    never = [f"{part}.max_restarts=0" for part in ("generator", "learner", "replay")]
    run = start(f"kill-{role}", "--learners", "2", *quick(10_000, "run.eval_every=0", *never))
    run.wait_for_step(3)
    processes = role_processes(run)
    os.kill(run.pid_of(role), signal.SIGKILL)
    assert run.wait() == 1, run.output
    assert f"the run failed: {role}" in run.output
    assert f"last lines of {role}.log" in run.output
    assert_all_gone(processes)


def test_a_dead_engine_core_ends_the_run_with_its_generators_name(start: Callable[..., Launched]) -> None:
    run = start("kill-engine", *quick(10_000, "run.eval_every=0", "generator.max_restarts=0"))
    run.wait_for_step(3)
    processes = role_processes(run)
    engine_core(run, "generator-0").kill()
    assert run.wait() == 1, run.output
    assert "the run failed: generator-0 failed" in run.output
    assert_all_gone(processes)


def test_generators_that_die_are_started_again_and_the_run_has_all_its_steps(start: Callable[..., Launched]) -> None:
    run = start("restart", "--generators", "2", *quick(16, "run.eval_every=0"))
    run.wait_for_step(3)
    os.kill(run.pid_of("generator-0"), signal.SIGKILL)
    run.wait_for_step(6)
    engine_core(run, "generator-1").kill()  # often in mid-publish; the run needs one of the two back
    assert run.wait() == 0, run.output
    assert "generator-0 failed: its process died (killed, crashed or out of memory); restart 1 of 3" in run.output
    assert "generator-1 failed: " in run.output
    assert_exact(run, 16)


def test_a_role_that_is_frozen_is_named_when_its_heartbeats_stop(start: Callable[..., Launched]) -> None:
    run = start("frozen", *quick(10_000, "run.eval_every=0", "run.heartbeat_timeout_s=5", "generator.max_restarts=0"))
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
    run = start("interrupt", *quick(10_000, "run.eval_every=0"))
    run.wait_for_step(3)
    processes = role_processes(run)
    run.process.send_signal(signal.SIGINT)
    assert run.wait() == 130, run.output
    assert list((run.run_dir / "checkpoints").glob("step_*"))
    assert_all_gone(processes)


def test_ctrl_c_twice_ends_the_run_at_once(start: Callable[..., Launched]) -> None:
    run = start("interrupt-twice", *quick(10_000, "run.eval_every=0"))
    run.wait_for_step(3)
    processes = role_processes(run)
    os.kill(run.pid_of("learner-0"), signal.SIGSTOP)  # so that a clean stop would take its whole deadline
    run.process.send_signal(signal.SIGINT)
    time.sleep(1.0)
    run.process.send_signal(signal.SIGINT)
    assert run.wait() == 130, run.output
    assert "stopped at once" in run.output
    assert_all_gone(processes)


def test_whoever_dies_learner_replay_or_launcher_every_prompt_is_trained_once(start: Callable[..., Launched]) -> None:
    limits = ("run.heartbeat_timeout_s=5", "run.stop_timeout_s=5")
    run = start("all-die", "--learners", "2", *quick(10_000, "run.eval_every=0", "run.save_every=6", *limits))
    run.wait_for_step(8)
    os.kill(run.pid_of("learner-1"), signal.SIGKILL)
    run.wait_for_step(16)
    os.kill(run.pid_of("replay"), signal.SIGKILL)
    run.wait_for_step(24)
    os.kill(run.pid_of("replay"), signal.SIGSTOP)
    run.wait_for_step(32)
    processes = role_processes(run)
    run.process.kill()
    assert_all_gone(processes)
    output = run.output
    assert "learner-1 failed: its process died (killed, crashed or out of memory); learners: restart 1 of 3" in output
    assert "learner-0: going over the steps 7 to " in output
    assert "replay failed: its process died (killed, crashed or out of memory); replay: restart 1 of 3" in output
    assert "replay was silent for 5 s (run.heartbeat_timeout_s) in phase 'serving'; replay: restart 2 of 3" in output

    num_steps = max(int(path.name[-6:]) for path in (run.run_dir / "checkpoints").iterdir()) + 10
    roles = ("learner.count=1", "generator.count=2")
    resumed = start("all-die", "--resume", str(run.run_dir), f"run.steps={num_steps}", *roles)
    assert resumed.wait() == 0, resumed.output
    assert_exact(resumed, num_steps)
    assert cli.main(["launch", "--resume", str(run.run_dir), f"run.steps={num_steps + 1}", "learner.lr=1"]) == 2
