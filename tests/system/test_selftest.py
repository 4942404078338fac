"""`asyncrl selftest` on Ray, with its real processes; and seeded bugs in the real vLLM."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from asyncrl.config.schema import VLLM
from asyncrl.selftest.agreement import require_agreement
from asyncrl.selftest.model import with_model
from asyncrl.selftest.suite import CHECKS, SERVING_CHECKS, run_checks
from asyncrl.selftest.system import System
from bench.selftest.local_system import config_of, local_system
from bench.selftest.mutants import results_of
from bench.selftest.seeding import MUTANTS, installed
from tests.support.fresh import run_fresh
from tests.support.launch import DEADLINE_S, ROOT

pytestmark = pytest.mark.system

IN_VLLM = [
    "one label for a request that spans two versions",
    "logprobs are those before temperature",
    "a prompt that an older version has cached is not computed anew",
    "weights arrive and are not applied",
    "checksums are not compared",
    "a tied head keeps the weights of before",
]


def test_a_selftest_finds_an_engines_one_bug_and_says_what_to_do(tmp_path: Path):
    engine = "generator.engine=tests.support.faults.careless_engine:CarelessEngine"
    command = [sys.executable, "-m", "asyncrl", "selftest", f"run.dir={tmp_path}", engine]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    (file,) = tmp_path.glob("selftest-*/selftest.json")
    results = json.loads(file.read_text())["results"]
    assert [result["check"] for result in results] == [check.name for check in CHECKS]
    assert {result["check"]: result["reason"] for result in results if result["status"] != "passed"} == {
        "seeds": "generator-0: one seed gave two different groups of completions"
    }
    assert "✗ seeds: generator-0: one seed gave two different groups of completions" in ended.stdout
    assert "set generator.seeded_sampling=false" in ended.stdout


def checked(system: System) -> dict[str, str]:
    """Check → passed, or why not."""
    results = run_checks(system, SERVING_CHECKS, lambda _: None)
    return {result.check: result.reason or result.status for result in results}


def found_in_vllm(parent: Path) -> tuple[dict[str, str], dict[str, str]]:
    """What the checks say of a sound vLLM, and each bug's check of that bug."""
    found = {}
    config = config_of("tiny", VLLM, "generator.top_k=8", "generator.top_p=0.9")
    with installed(VLLM) as mutants, local_system(with_model(config, parent)) as system:
        sound = checked(system)
        for one in (one for one in mutants if one.name in IN_VLLM):
            (result,) = results_of(system, one)
            found[one.name] = f"{result.check} {result.status}"
    return sound, found


def test_vllm_passes_every_check_and_bugs_that_are_seeded_in_it_are_found_by_the_checks_that_name_them(tmp_path: Path):
    expected = {one.name: f"{one.check} failed" for one in MUTANTS if one.name in IN_VLLM}
    assert len(expected) == len(IN_VLLM)
    sound, found = run_fresh(found_in_vllm, tmp_path)
    assert sound == {check.name: "passed" for check in SERVING_CHECKS}
    assert found == expected


def found_in_bfloat16(parent: Path) -> tuple[dict[str, str], float]:
    """What the checks say of a sound vLLM with a float32 head, and how far its logprobs are from the learner's."""
    config = config_of("tiny", VLLM, "model.dtype=bfloat16", "model.float32_head=true")
    with local_system(with_model(config, parent)) as system:
        sound = checked(system)
        sampled = system.sample(system.generators[0], [system.prompt(1, 8)], system.sampling(8))
        return sound, float(require_agreement(system, sampled, system.version, 1.0, "vLLM")["largest"])


def test_in_bfloat16_vllm_passes_every_check_with_a_head_in_float32(tmp_path: Path):
    sound, largest = run_fresh(found_in_bfloat16, tmp_path)
    assert sound == {check.name: "passed" for check in SERVING_CHECKS}
    assert 0 < largest < 0.02  # float32 would be exact
