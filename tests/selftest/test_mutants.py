"""Seeded bugs, each found by the check that names it; with the stand-in engine, whose weights and logprobs are real."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from asyncrl.selftest.checks.engine import closing
from asyncrl.selftest.generator import Generator
from asyncrl.selftest.suite import CHECKS, run_checks
from asyncrl.selftest.system import System
from asyncrl.transport.sockets import Network
from bench.selftest.local_system import NUM_THREADS, STAND_IN, LocalPart, config_of, local_system
from bench.selftest.mutants import results_of
from bench.selftest.seeding import MUTANTS, Mutant, installed
from bench.standin.engine import StandInEngine
from tests.support.models import random_qwen3


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder = random_qwen3(tmp_path_factory.mktemp("model"), tied=True)
    with installed(STAND_IN) as mutants, local_system(config_of(folder, STAND_IN)) as system:
        assert mutants == MUTANTS
        yield system


def test_a_sound_system_fails_no_check(system):
    results = list(run_checks(system, [check for check in CHECKS if check is not closing.CHECK], lambda _: None))
    assert {result.check: result.reason for result in results if result.status == "failed"} == {}
    assert {result.check for result in results if result.status == "skipped"} == {"memory", "deaths"}


@pytest.mark.parametrize("one", MUTANTS, ids=lambda one: one.name)
def test_a_seeded_bug_is_found_by_the_check_that_names_it(system: System, one: Mutant):
    (result,) = results_of(system, one)
    assert (result.check, result.status) == (one.check, "failed")
    assert result.reason
    assert result.advice


@pytest.mark.parametrize(("shutdown_s", "status"), [(0.0, "passed"), (2.0, "failed")])
def test_an_engine_has_to_close_in_time(system: System, monkeypatch, shutdown_s: float, status: str):
    monkeypatch.setattr(StandInEngine, "shutdown", lambda self: time.sleep(shutdown_s))
    config = replace(system.config, run=replace(system.config.run, stop_timeout_s=1.0))
    generator = LocalPart("generator-1", Generator("generator-1", config, True, Network()), NUM_THREADS)
    generator.call("start").result(60)
    (result,) = run_checks(replace(system, config=config, generators=[generator]), [closing.CHECK], lambda _: None)
    generator.close()
    assert result.reason in (
        "",
        "waited 1 s for the engine to close; shutdown() of StandInEngine should have come and did not",
    )


def test_a_lost_process_ends_the_checks_that_need_it(system: System):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(system.config.run, "step_timeout_s", 0.0)
        results = list(run_checks(system, CHECKS, lambda _: None))
    assert [result.status for result in results[3:5]] == ["failed", "skipped"]
    assert results[3].reason.startswith("waited 0 s for learners to gather")
    assert {result.reason for result in results[4:]} == {"a process was lost in the check of gather"}
