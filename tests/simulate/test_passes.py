"""What a learner's step takes, by the keys that ask for passes, and which keys a simulation says nothing of."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.device_mesh import DeviceMesh

from asyncrl import cli
from asyncrl.learn.update.forward import Forward
from asyncrl.learn.update.step import Learner
from asyncrl.simulate.estimator import from_config
from asyncrl.simulate.not_simulated import KEYS, not_simulated
from asyncrl.simulate.passes import forward_passes
from asyncrl.types import Batch
from tests.simulate.settings import TIMINGS, WORKLOAD, small_config
from tests.support.learn import random_batch, run_ranks, save_tiny_model, tiny_config

ROOT = Path(__file__).parents[2]
DECOUPLED = ["algorithm.loss=decoupled_ppo", "learner.mini_batch_size=1"]
EXTRA_PASSES = {
    "plain": [],
    "mini-batches": ["learner.mini_batch_size=2"],
    "epochs": ["learner.epochs_per_batch=3"],
    "proximal": DECOUPLED,
    "proximal, epochs": [*DECOUPLED, "learner.epochs_per_batch=2"],
    "proximal, interpolated": [*DECOUPLED, "algorithm.proximal=interpolate"],
    "reference in the loss": ["algorithm.kl_coef=0.1", "learner.epochs_per_batch=2"],
    "reference in the reward": ["algorithm.kl_coef=0.1", "algorithm.kl_in=reward", "learner.epochs_per_batch=2"],
    "normaliser": ["algorithm.correction_normalise=true", "learner.epochs_per_batch=2"],
    "second moment": ["algorithm.rejection=second_moment", "algorithm.rejection_bound=0.5"],
}


def passes_made(mesh: DeviceMesh, path: str, batch: Batch) -> dict[str, float]:
    """Forward passes over the whole batch that a step of the real learner makes; a backward pass counts as two."""
    made: list[int] = []
    run = Forward.run

    def counted(self: Forward, model: Any, micro_batch: Any) -> Any:
        made.append((3 if torch.is_grad_enabled() else 1) * len(micro_batch.actions.segment_ids))
        return run(self, model, micro_batch)

    Forward.run = counted  # type: ignore[method-assign]  # in a process of its own
    results = {}
    for name, overrides in EXTRA_PASSES.items():
        learner = Learner(tiny_config(path, *overrides), mesh, 1)
        made.clear()
        learner.train(batch)
        results[name] = sum(made) / sum(group.num_tokens for group in batch.groups)
    return results


@pytest.mark.system
def test_the_learner_makes_as_many_passes_as_are_simulated(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path / "model", tied=False)
    batch = random_batch(11, step=5)
    batch.groups[:] = [replace(batch.groups[0], index=index) for index in range(4)]  # mini-batches of as many tokens
    (made,) = run_ranks(1, passes_made, path, batch)
    assert made == pytest.approx(
        {name: forward_passes(tiny_config(path, *overrides)) for name, overrides in EXTRA_PASSES.items()}
    )


def test_adapters_need_no_gradients_of_the_weights_and_checkpointing_is_one_more_pass() -> None:
    assert forward_passes(small_config("lora.rank=8")) == 2
    again = ["learner.gradient_checkpointing=true", "learner.epochs_per_batch=2"]
    assert forward_passes(small_config(*again)) == 8
    assert forward_passes(small_config(*again, "learner.checkpointing_keeps=matmuls")) == 6


def test_a_simulated_step_takes_as_many_passes_over_its_batch() -> None:
    def train_per_token_s(*overrides: str) -> float:
        given = from_config(ROOT / "configs" / "quickstart.yaml", list(overrides), None)
        return given.estimator.timings(given.config, given.workload).train_per_token_s

    assert train_per_token_s("learner.epochs_per_batch=3") == pytest.approx(3 * train_per_token_s())


@pytest.mark.parametrize(
    "override",
    [
        "learner.offload=true",
        "publish.kv_cache=recompute",
        "publish.staged=false",
        "publish.engine=delta",
        "run.save_every=5",
        "algorithm.zero_variance=refill",
        "algorithm.overlong=mask",
        "learner.mini_batch_size=2",
    ],
)
def test_a_key_whose_cost_is_not_simulated_is_named_unless_the_measured_run_had_it(override: str) -> None:
    assert not_simulated(small_config(), None, TIMINGS, WORKLOAD) == []
    config, timings = small_config(override), replace(TIMINGS, save_s=0.5)
    (line,) = not_simulated(config, None, TIMINGS, WORKLOAD)
    assert override in line or "2 optimizer updates in a step" in line
    assert not_simulated(config, config, timings, WORKLOAD) == []


def test_every_key_that_is_named_is_on_the_planning_page() -> None:
    page = (ROOT / "docs" / "planning.md").read_text()
    assert [key for key in KEYS if f"`{key}`" not in page] == []


def test_simulate_and_plan_say_what_is_not_simulated(capsys: pytest.CaptureFixture[str]) -> None:
    key = "publish.kv_cache=recompute"
    assert cli.main(["simulate", key, "--steps", "10"]) == 0
    assert f"• not simulated: {key}" in capsys.readouterr().out
    assert cli.main(["simulate", key, "--steps", "10", "--json"]) == 0
    assert key in json.loads(capsys.readouterr().out)["not_simulated"][0]
    assert cli.main(["plan", "--gpus", "2", "--accelerator", "cpu", key, "--steps", "10"]) == 0
    assert f"• not simulated: {key}" in capsys.readouterr().out
