"""Seeded bugs, each found by the check that names it; with the stand-in engine, whose weights and logprobs are real."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from asyncrl.selftest.suite import CHECKS, run_checks
from asyncrl.selftest.system import System
from bench.selftest.local_system import STAND_IN, config_of, local_system
from bench.selftest.mutants import MUTANTS, Mutant, installed, results_of
from tests.support.models import random_qwen3


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder = random_qwen3(tmp_path_factory.mktemp("model"), tied=True)
    with installed(STAND_IN) as mutants, local_system(config_of(folder, STAND_IN)) as system:
        assert mutants == MUTANTS
        yield system


def test_a_sound_system_fails_no_check(system):
    results = list(run_checks(system, CHECKS, lambda _: None))
    assert {result.check: result.reason for result in results if result.status == "failed"} == {}
    assert {result.check for result in results if result.status == "skipped"} == {"memory", "deaths"}


@pytest.mark.parametrize("one", MUTANTS, ids=lambda one: one.name)
def test_a_seeded_bug_is_found_by_the_check_that_names_it(system: System, one: Mutant):
    (result,) = results_of(system, one)
    assert (result.check, result.status) == (one.check, "failed")
    assert result.reason
    assert result.advice


def test_a_lost_process_ends_the_checks_that_need_it(system: System):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(system.config.run, "step_timeout_s", 0.0)
        results = list(run_checks(system, CHECKS, lambda _: None))
    assert [result.status for result in results[4:6]] == ["failed", "skipped"]
    assert results[4].reason.startswith("waited 0 s for learners to gather")
    assert {result.reason for result in results[5:]} == {"a process was lost in the check of gather"}
