"""Ranks, layouts and micro-batch sizes change nothing, and one step equals a plain loop over the sequences."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.device_mesh import DeviceMesh
from transformers import AutoModelForCausalLM

from asyncrl.config.schema import Config
from asyncrl.learn.policy import decoder_layers, logprob
from asyncrl.learn.update.step import Learner
from asyncrl.types import Batch
from tests.support.learn import (
    full_parameters,
    plain_k3,
    plain_ratio,
    random_batch,
    run_ranks,
    save_tiny_model,
    tiny_config,
)

pytestmark = pytest.mark.system

NUM_STEPS = 3
RICH = ["algorithm.kl_coef=0.1", "algorithm.entropy_coef=0.01", "generator.temperature=0.7"]
DECOUPLED = [
    "algorithm.loss=decoupled_ppo",
    "algorithm.correction_normalise=true",
    "algorithm.correction_lag_decay=0.9",
    "algorithm.advantage=reinforce_pp",
    "algorithm.aggregation=prompt_mean",
    "algorithm.kl_coef=0.1",
    "algorithm.kl_in=reward",
    "algorithm.kl_estimator=k1",
    "learner.mini_batch_size=2",
]
SEQUENCES = [
    "algorithm.loss=gspo",
    "algorithm.clip_lower=0.03",
    "algorithm.clip_upper=0.04",
    "algorithm.correction=sequence_mask",
    "algorithm.correction_upper=20",
    "algorithm.correction_normalise=true",
    "algorithm.aggregation=sequence_sum",
    "algorithm.overlong=mask",
    "algorithm.zero_variance=filter",
    "algorithm.kl_coef=0.1",
    "algorithm.kl_unbiased=true",
]
PASSES = [
    "algorithm.loss=sapo",
    "algorithm.correction=none",
    "algorithm.rejection=second_moment",
    "algorithm.rejection_bound=0.3",
    "algorithm.entropy_coef=0.02",
    "algorithm.entropy_target=3.0",
    "learner.epochs_per_batch=2",
]
# name → (tied embeddings, layout, overrides); cases of one letter must agree with each other
CASES: dict[str, tuple[bool, str, list[str]]] = {
    "a padded": (True, "padded", [*RICH, "learner.micro_batch_tokens=10000"]),
    "a small micro-batches": (True, "padded", [*RICH, "learner.micro_batch_tokens=20"]),
    "a packed": (True, "packed", [*RICH, "learner.micro_batch_tokens=40"]),
    "a shared": (True, "shared", [*RICH, "learner.micro_batch_tokens=40"]),
    "a checkpointed": (True, "padded", [*RICH, "learner.gradient_checkpointing=true"]),
    "a gathered": (
        True,
        "shared",
        [
            *(*RICH, "learner.micro_batch_tokens=20", "learner.keep_gathered=all"),
            *("learner.gradient_checkpointing=true", "learner.checkpointing_keeps=matmuls"),
        ],
    ),
    "b padded": (False, "padded", ["algorithm.aggregation=sequence_mean", "learner.mini_batch_size=2"]),
    "b packed": (
        False,
        "packed",
        ["algorithm.aggregation=sequence_mean", "learner.mini_batch_size=2", "learner.micro_batch_tokens=30"],
    ),
    "b shared": (False, "shared", ["algorithm.aggregation=sequence_mean", "learner.mini_batch_size=2"]),
    "c padded": (True, "padded", [*DECOUPLED, "learner.micro_batch_tokens=10000"]),
    "c packed": (True, "packed", [*DECOUPLED, "learner.micro_batch_tokens=30"]),
    "c shared": (True, "shared", [*DECOUPLED, "learner.micro_batch_tokens=30"]),
    "d padded": (False, "padded", [*SEQUENCES, "learner.micro_batch_tokens=10000"]),
    "d packed": (False, "packed", [*SEQUENCES, "learner.micro_batch_tokens=30"]),
    "e padded": (True, "padded", [*PASSES, "learner.micro_batch_tokens=10000"]),
    "e packed": (True, "packed", [*PASSES, "learner.micro_batch_tokens=30"]),
    "e shared": (True, "shared", [*PASSES, "learner.micro_batch_tokens=30"]),
    "d shared": (False, "shared", [*SEQUENCES, "learner.micro_batch_tokens=10000"]),
}
SHARED_ROWS = ["learner.context_parallel=2", "learner.micro_batch_tokens=20"]
ON_TWO_RANKS: dict[str, tuple[bool, str, list[str]]] = {
    "b compiled": (
        False,
        "packed",
        ["algorithm.aggregation=sequence_mean", "learner.mini_batch_size=2", "learner.compile=true"],
    ),
    "a context": (
        True,
        "packed",
        [*RICH, *SHARED_ROWS, "learner.gradient_checkpointing=true", "learner.keep_gathered=all"],
    ),
    "c context": (True, "packed", [*DECOUPLED, *SHARED_ROWS]),
    "d context": (False, "packed", [*SEQUENCES, *SHARED_ROWS]),
    "e context": (True, "packed", [*PASSES, *SHARED_ROWS]),
}
"""Layers are compiled, or two ranks compute each row together."""

ON_FOUR_RANKS = ("a packed", "b shared", "c padded", "d packed", "e shared")
ON_ONE_RANK = tuple(dict.fromkeys([*(f"{case} padded" for case in "abcde"), *ON_FOUR_RANKS]))
"""Two cores take their time."""


def batches() -> list[Batch]:
    made = [random_batch(seed, step=seed + 2) for seed in range(NUM_STEPS)]
    made[0].groups[1].rewards[2] = np.nan  # a quarantined completion
    return made


def train_cases(mesh: DeviceMesh, models: dict[bool, str], names: list[str]) -> dict[str, Any]:
    results = {}
    decoder_layers.COMPILER = logprob.COMPILER = "aot_eager"  # all but the code generator, which takes a minute
    for name in names:
        tied, layout, overrides = (CASES | ON_TWO_RANKS)[name]
        learner = Learner(tiny_config(models[tied], *overrides), mesh, NUM_STEPS)
        learner.forward.layout = layout  # type: ignore[assignment]
        metrics = [learner.train(batch) for batch in batches()]
        results[name] = (metrics, full_parameters(learner))
    return results


def train_unusual_batches(mesh: DeviceMesh, model: str) -> dict[str, Any]:
    """One step from one start: a batch, the same with other values in its stale tokens, all stale, one reward ∞."""
    config = tiny_config(model, "replay.max_staleness=1")
    batch, tampered = random_batch(7, step=9), random_batch(7, step=9)
    for group in (batch.groups[0], tampered.groups[0]):
        group.versions[: group.lengths[0]] = 5  # the whole first completion is stale
    for group in tampered.groups:
        group.logprobs[group.versions < 8] = -17.0
    first = tampered.groups[0]
    first.tokens[: first.lengths[0]] = 1
    broken = random_batch(7, step=9)
    broken.groups[3].rewards[0] = np.inf
    cases = {"batch": batch, "tampered": tampered, "later": replace(batch, step=99), "broken": broken}
    messages: list[str] = []
    logging.getLogger("asyncrl.learn.update.step").addFilter(lambda record: not messages.append(record.getMessage()))
    results: dict[str, Any] = {"warnings": messages}
    for name, chosen in cases.items():
        learner = Learner(config, mesh, 1)
        before = full_parameters(learner)
        metrics = learner.train(chosen)
        results[name] = (before, metrics, full_parameters(learner))
    return results


def plain_step(config: Config, batch: Batch) -> dict[str, float]:
    """Loss and gradient norm of one step by float64 loops over single sequences: no packing, no FSDP."""
    algorithm = config.algorithm
    model = AutoModelForCausalLM.from_pretrained(config.model.path, dtype=torch.float64)
    reference = AutoModelForCausalLM.from_pretrained(config.model.path, dtype=torch.float64)
    token_losses, kls, entropies = [], [], []
    for group in batch.groups:
        rewards = group.rewards[~np.isnan(group.rewards)].astype(float)
        deviation = rewards.std(ddof=1) if len(rewards) > 1 and rewards.std() > 0 else math.inf
        start = 0
        for i, length in enumerate(group.lengths):
            span = slice(start, start + length)
            start += length
            if np.isnan(group.rewards[i]):
                continue
            advantage = (group.rewards[i] - rewards.mean()) / (deviation + 1e-6)
            ids = torch.from_numpy(np.concatenate([group.prompt_token_ids, group.tokens[span]]).astype(np.int64))
            logits = model(ids[None]).logits[0, -length - 1 : -1] / config.generator.temperature
            table = torch.log_softmax(logits, -1)
            with torch.no_grad():
                other = torch.log_softmax(
                    reference(ids[None]).logits[0, -length - 1 : -1] / config.generator.temperature, -1
                )
            for t, token in enumerate(ids[-length:]):
                if batch.step - group.versions[span][t] > config.replay.max_staleness:
                    continue
                logprob = table[t, token]
                ratio = plain_ratio(logprob, float(group.logprobs[span][t]))
                surrogate = torch.minimum(
                    ratio * advantage,
                    ratio.clamp(1 - algorithm.clip_lower, 1 + algorithm.clip_upper) * advantage,
                )
                cut = min(1.0, algorithm.correction_upper / ratio.item())
                token_losses.append(-cut * surrogate)
                kls.append(plain_k3(other[t, token] - logprob))
                entropies.append(-(table[t].exp() * table[t]).sum())
    policy, kl, entropy = (torch.stack(values).mean() for values in (token_losses, kls, entropies))
    total = policy + algorithm.kl_coef * kl - algorithm.entropy_coef * entropy
    total.backward()
    norm = torch.stack([parameter.grad.norm() for parameter in model.parameters()]).norm()
    return {
        "loss/policy": policy.item(),
        "loss/kl": kl.item(),
        "loss/total": total.item(),
        "policy/entropy": entropy.item(),
        "optim/grad_norm": norm.item(),
        "tokens/trained": len(token_losses),
    }


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, str]:
    folder = tmp_path_factory.mktemp("models")
    return {tied: save_tiny_model(folder / f"tied_{tied}", tied=tied) for tied in (True, False)}


@pytest.fixture(scope="module")
def by_num_ranks(models: dict[bool, str]) -> dict[int, dict[str, Any]]:
    cases = {1: ON_ONE_RANK, 2: CASES | ON_TWO_RANKS, 4: (*ON_FOUR_RANKS, "d context")}
    return {num_ranks: run_ranks(num_ranks, train_cases, models, list(names))[0] for num_ranks, names in cases.items()}


def assert_same(left: Any, right: Any) -> None:
    for mine, other in zip(left[0], right[0], strict=True):
        assert mine.keys() == other.keys()
        for key in mine.keys() - {"tokens/packing_efficiency"}:  # fewer rows to a rank, or another layout
            assert mine[key] == pytest.approx(other[key], rel=1e-5, abs=1e-5), key
    for name, parameter in left[1].items():
        torch.testing.assert_close(parameter, right[1][name], rtol=0, atol=5e-5, msg=name)


@pytest.mark.parametrize(
    ("case", "num_ranks"), [*((case, 2) for case in ON_ONE_RANK), *((case, 4) for case in ON_FOUR_RANKS)]
)
def test_more_ranks_train_as_one_does(by_num_ranks: dict[int, dict[str, Any]], case: str, num_ranks: int) -> None:
    assert_same(by_num_ranks[num_ranks][case], by_num_ranks[1][case])


@pytest.mark.parametrize(
    "case",
    [
        "a small micro-batches",
        "a checkpointed",
        "a gathered",
        *(f"{case} {layout}" for case in "abcde" for layout in ("packed", "shared")),
    ],
)
def test_layout_and_micro_batch_size_change_nothing(by_num_ranks: dict[int, dict[str, Any]], case: str) -> None:
    assert_same(by_num_ranks[2][case], by_num_ranks[2][f"{case[0]} padded"])


@pytest.mark.parametrize(("case", "num_ranks"), [*((case, 2) for case in ON_TWO_RANKS), ("d context", 4)])
def test_compiled_or_two_to_each_row_ranks_train_as_one_does_and_also_beside_others(
    by_num_ranks: dict[int, dict[str, Any]], case: str, num_ranks: int
) -> None:
    assert_same(by_num_ranks[num_ranks][case], by_num_ranks[1][f"{case[0]} padded"])


def test_a_step_equals_a_plain_loop_over_the_sequences(
    models: dict[bool, str], by_num_ranks: dict[int, dict[str, Any]]
) -> None:
    tied, _, overrides = CASES["a padded"]
    expected = plain_step(tiny_config(models[tied], *overrides), batches()[0])
    metrics = by_num_ranks[2]["a padded"][0][0]
    for key, value in expected.items():
        assert metrics[key] == pytest.approx(value, rel=1e-5, abs=1e-6), key


@pytest.fixture(scope="module")
def one_step(models: dict[bool, str]) -> dict[str, Any]:
    return run_ranks(1, train_unusual_batches, models[True])[0]


def test_a_token_over_the_bound_has_no_influence_at_all(one_step: dict[str, Any]) -> None:
    before, metrics, after = one_step["batch"]
    _, tampered_metrics, tampered = one_step["tampered"]
    assert metrics["staleness/violations"] > 0
    assert metrics["optim/grad_norm"] > 0
    assert metrics["optim/grad_norm"] == tampered_metrics["optim/grad_norm"]
    assert all(torch.equal(after[name], tampered[name]) for name in after)
    assert any(not torch.equal(after[name], before[name]) for name in after)


def test_an_update_without_a_trained_token_is_skipped_and_counted(one_step: dict[str, Any]) -> None:
    before, metrics, after = one_step["later"]
    assert metrics["tokens/trained"] == 0
    assert metrics["optim/skipped_updates"] == 1
    assert all(torch.equal(after[name], before[name]) for name in after)


def test_an_update_whose_gradient_is_not_finite_is_skipped_and_counted(one_step: dict[str, Any]) -> None:
    before, metrics, after = one_step["broken"]
    assert one_step["warnings"] == ["update 1 is skipped: its gradient norm is nan (the largest advantage is nan)"]
    assert metrics["tokens/trained"] > 0
    assert metrics["optim/skipped_updates"] == 1
    assert all(torch.equal(after[name], before[name]) for name in after)
