"""What stays gathered between micro-batches: how often FSDP gathers and reduces, and that the results are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from asyncrl.learn.update.step import Learner
from tests.support.learn import full_parameters, random_batch, run_ranks, save_tiny_model, tiny_config

pytestmark = pytest.mark.system

NUM_UNITS = 3
"""Two decoder layers and the root."""
KEPT = ("nothing", "gradients", "all")
TYPES = ("float32", "bfloat16")
Answer = tuple[float, dict[str, torch.Tensor], dict[str, int], int]


def train(mesh: DeviceMesh, path: str, keep_gathered: str, dtype: str) -> Answer:
    """Gradient norm and parameters after two updates, calls of FSDP's collectives, and micro-batches of the updates."""
    calls = {"all_gather_single": 0, "reduce_scatter_single": 0}

    def counted(name: str) -> Any:
        collective = getattr(dist, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            return collective(*args, **kwargs)

        return call

    settings = [f"learner.keep_gathered={keep_gathered}", f"model.dtype={dtype}", "learner.mini_batch_size=2"]
    learner = Learner(tiny_config(path, *settings, "learner.micro_batch_tokens=12"), mesh, 1)
    runs: list[None] = []
    learner.policy.register_forward_hook(lambda *_: runs.append(None))
    with pytest.MonkeyPatch.context() as patch:
        for name in calls:
            patch.setattr(dist, name, counted(name))
        metrics = learner.train(random_batch(1, step=2))
    return metrics["optim/grad_norm"], full_parameters(learner), calls, len(runs)  # type: ignore[return-value]


def train_all(mesh: DeviceMesh, path: str) -> dict[tuple[str, str], Answer]:
    return {
        (kept, dtype): train(mesh, path, kept, dtype) for kept in ("nothing", "gradients", "all") for dtype in TYPES
    }


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Answer]:
    path: Path = tmp_path_factory.mktemp("model")
    return run_ranks(2, train_all, save_tiny_model(path, tied=False))[0]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kept", ["gradients", "all"])
def test_what_stays_gathered_changes_no_update(kept: str, dtype: str, answers: dict[tuple[str, str], Answer]) -> None:
    norm, parameters, _, _ = answers[kept, dtype]
    expected_norm, expected, _, _ = answers["nothing", dtype]
    assert norm == pytest.approx(expected_norm, rel=1e-5)
    for name, value in expected.items():
        torch.testing.assert_close(parameters[name], value, rtol=0, atol=1e-5, msg=name)


def test_gradients_are_reduced_and_weights_gathered_once_an_update_where_they_stay(
    answers: dict[tuple[str, str], Answer],
) -> None:
    calls = {kept: answers[kept, "float32"][2] for kept in KEPT}
    num_updates, num_micro_batches = 2, answers["nothing", "float32"][3]
    assert num_micro_batches >= 2 * num_updates
    reduced = {kept: of_kept["reduce_scatter_single"] for kept, of_kept in calls.items()}
    assert reduced["nothing"] == NUM_UNITS * num_micro_batches
    assert reduced["gradients"] == reduced["all"] == NUM_UNITS * num_updates
    gathered = {kept: of_kept["all_gather_single"] for kept, of_kept in calls.items()}
    assert gathered["gradients"] == gathered["nothing"] > NUM_UNITS * num_micro_batches
    assert gathered["all"] == NUM_UNITS * num_updates
