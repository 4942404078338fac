"""The lag study's parts: the forced lag, the sampler in the same process, and the table's figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.device_mesh import DeviceMesh
from transformers import AutoModelForCausalLM

from asyncrl.config.load import load
from asyncrl.data.arithmetic import arithmetic_rows
from asyncrl.data.tiny_model import build_tiny_model
from bench.off_policy.lagged import LaggedRun, Sampler
from bench.off_policy.off_policy import METHODS, Job
from bench.off_policy.report import Run, cells
from tests.support.learn import full_parameters, run_ranks


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = arithmetic_rows("train", 0)
    return build_tiny_model(tmp_path_factory.mktemp("models"), rows, warmup_steps=5, seed=0, hidden_size=32)


def lagged_run(mesh: DeviceMesh, model: Path, method: str, lag: int, num_steps: int) -> tuple[list[Any], Any]:
    overrides = Job(method, lag, seed=0, num_steps=num_steps, lr=1e-3, models=model.parent).overrides
    run = LaggedRun(load("configs/quickstart.yaml", [f"model.path={model}", *overrides]), mesh, num_steps)
    metrics = [run.step() for _ in range(num_steps)]
    return metrics, full_parameters(run.learner)


def test_every_token_of_a_step_has_the_forced_lag_once_there_are_enough_versions(model: Path) -> None:
    ((metrics, _),) = run_ranks(1, lagged_run, model, "none", 2, 5)
    assert [step["staleness/histogram"].index(sum(step["staleness/histogram"])) for step in metrics] == [0, 1, 2, 2, 2]
    assert [step["staleness/violations"] for step in metrics] == [0] * 5


def final_parameters_at_lag_0(mesh: DeviceMesh, model: Path) -> dict[str, Any]:
    return {method: lagged_run(mesh, model, method, 0, 2)[1] for method in METHODS}


def test_without_lag_all_methods_make_the_same_updates(model: Path) -> None:
    (parameters,) = run_ranks(1, final_parameters_at_lag_0, model)
    for method in METHODS:
        for name, value in parameters["none"].items():
            torch.testing.assert_close(parameters[method][name], value, atol=2e-5, rtol=0, msg=f"{method}: {name}")


def test_the_sampler_reports_the_logprobs_of_a_plain_forward_on_unpadded_prompts(model: Path) -> None:
    sampler = Sampler(str(model), max_tokens=6, rng=np.random.default_rng(1))
    prompts = ["7+25=", "1+1=", "99+9="]
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    for prompt, (completion,) in zip(prompts, sampler.sample(prompts, num_samples=1, version=3), strict=True):
        prompt_ids, sampled = sampler.tokenizer(prompt)["input_ids"], torch.from_numpy(completion.token_ids).long()
        with torch.no_grad():
            logits = plain(torch.tensor([[*prompt_ids, *sampled.tolist()]])).logits[0]
        expected = logits[len(prompt_ids) - 1 : -1].log_softmax(-1).gather(1, sampled[:, None])[:, 0]
        torch.testing.assert_close(torch.from_numpy(completion.logprobs), expected, atol=1e-5, rtol=0)
        assert completion.versions.tolist() == [3] * len(sampled)


def finished(method: str, lag: int, seed: int, final: float) -> Run:
    return Run(method, lag, seed, 100, 1e-4, [0.5, final, final, final], 1.0)


def test_a_cell_is_the_mean_of_each_seeds_ratio_to_its_own_on_policy_run_with_students_interval() -> None:
    runs = [finished("none", 0, seed, 0.8 + 0.1 * seed) for seed in range(2)]
    runs += [finished("none", 8, 0, 0.4), finished("none", 8, 1, 0.54), finished("none", 8, 2, 0.9)]
    cell = cells(runs)["none"][8]
    assert cell.ratios == pytest.approx([0.5, 0.6])  # seed 2 has no on-policy run
    assert cell.mean == pytest.approx(0.55)
    assert cell.half_width == pytest.approx(12.706 * 0.05)  # the standard error of two values is half their distance
