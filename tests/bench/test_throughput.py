"""The figures of pipeline/throughput.py from rows that are known, and its eyes on processes; no run is launched."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.pipeline.overlap import run_figures
from bench.support.processes import cpu_s, machine_cpu_s, pin, role_pids, tree

ROOT = Path(__file__).parents[2]


def row(step: int, wait_s: float, train_s: float, busy_s: float, num_generators: int = 1) -> dict[str, float]:
    """A step of 100 tokens and 10 samples whose generators were busy for `busy_s` in each second before it."""
    step_s = wait_s + train_s + 0.3
    return {
        "time/step_s": step_s,
        "time/wait_s": wait_s,
        "time/train_s": train_s,
        "time/gather_s": 0.05,
        "time/publish_s": 0.5,
        "time/publish_wait_s": 0.15,
        "time/save_s": 0.0,
        "throughput/learner_tokens_per_s": 100 / step_s,
        "throughput/samples_per_s": 10 / step_s,
        "generator/tokens_total": 100.0 * step * num_generators,
        "generator/busy_total_s": busy_s * step * num_generators,
        "generator/paused_total_s": 0.1 * step * num_generators,
        "generator/elapsed_total_s": 2.0 * step * num_generators,
        "queue/commit_total_s": 0.01 * step,
        "queue/batch_held_total_s": 0.002 * step,
        "staleness/mean": 1.0,
        "staleness/max": float(step % 3),
        "staleness/violations": 0.0,
    }


def test_the_figures_of_a_worked_example():
    rows = [row(step, wait_s=0.2, train_s=1.5, busy_s=1.6) for step in range(1, 12)]
    figures = run_figures(rows, num_warmup_steps=1, num_generators=1)
    assert figures.num_steps == 10
    assert figures.step_s == figures.step_median_s == pytest.approx(2.0)
    assert figures.generation_s == pytest.approx(1.6)
    assert figures.learning_s == pytest.approx(1.55)
    assert figures.overlap_efficiency == pytest.approx(0.8)
    assert (figures.publish_s, figures.publish_wait_s) == pytest.approx((0.5, 0.15))
    assert (figures.wait_s, figures.control_s, figures.learner_idle) == pytest.approx((0.2, 0.1, 0.175))
    assert (figures.commit_s, figures.batch_held_s) == pytest.approx((0.01, 0.002))
    assert (figures.samples_per_s, figures.learner_tokens_per_s) == pytest.approx((5.0, 50.0))
    assert figures.generator_tokens_per_s == pytest.approx(50.0)
    assert (figures.generator_idle, figures.generator_paused) == pytest.approx((0.15, 0.05))
    assert figures.staleness_max == 2.0


def test_two_generators_with_half_the_tokens_each_take_half_the_time_a_step():
    rows = [row(step, wait_s=0.2, train_s=0.5, busy_s=0.8, num_generators=2) for step in range(1, 4)]
    assert run_figures(rows, 1, num_generators=2).generation_s == pytest.approx(0.4)


@given(st.integers(1, 5), st.lists(st.tuples(st.floats(0, 9), st.floats(0.1, 9)), min_size=2, max_size=8))
def test_the_parts_of_a_step_add_up_and_the_warm_up_counts_for_nothing(num_warmup_steps, times):
    warmup = [row(step, 99.0, 99.0, 1.0) for step in range(1, num_warmup_steps + 1)]
    measured = [row(num_warmup_steps + at, wait_s, train_s, 1.0) for at, (wait_s, train_s) in enumerate(times, 1)]
    figures = run_figures(warmup + measured, num_warmup_steps, 1)
    assert figures.step_s == pytest.approx(sum(wait_s + train_s + 0.3 for wait_s, train_s in times) / len(times))
    waits_s = figures.wait_s + figures.publish_wait_s
    assert figures.learning_s + waits_s + figures.control_s == pytest.approx(figures.step_s)


def test_a_role_and_its_children_are_pinned_to_one_core_and_the_next_role_to_another(tmp_path):
    script = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
    roles = {name: subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE) for name in ("a", "b")}
    try:
        (tmp_path / "logs").mkdir()
        for name, process in zip(("generator-0", "learner-0"), roles.values(), strict=True):
            (tmp_path / "logs" / f"{name}.log").write_text(f"INFO root: {name} is process {process.pid}\nmore\n")
            while len(list(tree(process.pid))) < 2:
                assert process.poll() is None
        assert role_pids(tmp_path) == {"generator-0": roles["a"].pid, "learner-0": roles["b"].pid}
        cores = sorted(os.sched_getaffinity(0))
        core_of_role = pin(tmp_path, cores)
        assert core_of_role == {"generator-0": cores[0], "learner-0": cores[1 % len(cores)]}
        for process, core in zip(roles.values(), core_of_role.values(), strict=True):
            assert [os.sched_getaffinity(pid) for pid in tree(process.pid)] == [{core}, {core}]
    finally:
        for process in roles.values():
            process.communicate(b"\n")


def test_the_cpu_time_of_a_process_is_within_that_of_the_machine():
    machine_before_s, own_before_s = machine_cpu_s(), cpu_s(iter([os.getpid()]))
    sum(range(3_000_000))
    own_s = cpu_s(iter([os.getpid()])) - own_before_s
    assert 0 < own_s <= machine_cpu_s() - machine_before_s + 0.05  # ticks of 10 ms, read one after the other


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "--steps must be at least 1"),
        (["replay.max_staleness=0"], "replay.max_staleness=0 is the synchronous run"),
        (["replay.max_stalenes=1"], "max_stalenes"),
    ],
)
def test_impossible_arguments_are_refused_before_anything_starts(arguments, message):
    command = [sys.executable, str(ROOT / "bench" / "pipeline" / "throughput.py"), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert result.returncode == 2
    assert message in result.stderr
