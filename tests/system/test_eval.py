"""`asyncrl eval` of a run, with the real vLLM: the figures are those of the run's own last evaluation, by another."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from asyncrl import cli
from tests.support.launch import STAND_IN, Launched, quick

pytestmark = pytest.mark.system


def test_a_run_is_evaluated_as_it_evaluated_itself(
    start: Callable[..., Launched], capsys: pytest.CaptureFixture[str]
) -> None:
    run = start("evaluated", *quick(4, "run.eval_every=4", STAND_IN))
    assert run.wait() == 0, run.output
    own = run.rows()[-1]
    settings = ["run.eval_prompts=16", "generator.engine=vllm"]
    assert cli.main(["eval", str(run.run_dir), *settings, "--data", "arithmetic", "--json"]) == 0
    (figures,) = json.loads(capsys.readouterr().out)
    assert figures["num_prompts"] == own["eval/num_prompts"] == 16
    assert figures["accuracy"]["pass@1"]["value"] == own["eval/accuracy"]
    assert figures["reward_mean"] == own["eval/reward_mean"]
    assert figures["length_mean"] == own["eval/length_mean"]
