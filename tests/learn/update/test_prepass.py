"""Decoupled PPO, the normalised correction and the KL in the reward, in a whole step, against a plain loop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributed.device_mesh import DeviceMesh
from transformers import AutoModelForCausalLM, PreTrainedModel

from asyncrl.learn.update.batch_metrics import Metrics
from asyncrl.learn.update.step import Learner
from asyncrl.types import Batch, Group
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

STEP, LR, EPS, KL_COEF, UPPER = 5, 1e-2, 1e-6, 0.2, 1.5
OVERRIDES = [
    "algorithm.advantage=dr_grpo",
    "algorithm.loss=decoupled_ppo",
    f"algorithm.correction_upper={UPPER}",
    "algorithm.correction_normalise=true",
    "algorithm.kl_in=reward",
    "algorithm.kl_estimator=k3",
    f"algorithm.kl_coef={KL_COEF}",
    "learner.mini_batch_size=2",
    "learner.micro_batch_tokens=40",
    f"learner.lr={LR}",
    f"learner.eps={EPS}",
]


def train(
    mesh: DeviceMesh, path: str, batch: Batch, num_epochs: int, bound: float | None
) -> tuple[Metrics, dict[str, torch.Tensor], int]:
    """Metrics, parameters, and how often the policy was run forward."""
    overrides = [*OVERRIDES, f"learner.epochs_per_batch={num_epochs}"]
    if bound is not None:
        overrides += ["algorithm.rejection=second_moment", f"algorithm.rejection_bound={bound}"]
    learner = Learner(tiny_config(path, *overrides), mesh, 1)
    runs: list[None] = []
    learner.policy.register_forward_hook(lambda *_: runs.append(None))
    return learner.train(batch), full_parameters(learner), len(runs)


def completion_logprobs(model: PreTrainedModel, group: Group) -> list[torch.Tensor]:
    ends = group.lengths.cumsum()
    result = []
    for end, length in zip(ends, group.lengths, strict=True):
        tokens = torch.from_numpy(group.tokens[end - length : end].astype(np.int64))
        ids = torch.cat([torch.from_numpy(group.prompt_token_ids.astype(np.int64)), tokens])
        table = model(ids[None]).logits[0, -len(tokens) - 1 : -1].log_softmax(-1)
        result.append(table.gather(-1, tokens[:, None])[:, 0])
    return result


def behaviour(group: Group) -> list[torch.Tensor]:
    return list(torch.from_numpy(group.logprobs).split(group.lengths.tolist()))


def kept_by_second_moment(log_ratio: torch.Tensor, bound: float) -> torch.Tensor:
    """Bool: the largest squares go, one after another, until the mean of the others is within the bound."""
    kept = torch.ones_like(log_ratio, dtype=torch.bool)
    squares = log_ratio.square()
    while squares[kept].mean() > bound:
        kept[squares.where(kept, -1).argmax()] = False
    return kept


def plain_step(path: str, batch: Batch, num_epochs: int, bound: float | None) -> tuple[float, dict[str, torch.Tensor]]:
    """Mean KL penalty and the parameters after the step's updates; a completion with a NaN logprob has no part."""
    model, reference = (AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval() for _ in range(2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, eps=EPS, weight_decay=0.0)
    with torch.no_grad():
        proximal = [completion_logprobs(model, group) for group in batch.groups]
        penalties = [
            [
                KL_COEF * plain_k3(ref - mu).sum().item()
                for ref, mu in zip(completion_logprobs(reference, group), behaviour(group), strict=True)
            ]
            for group in batch.groups
        ]
    for chosen in ([0, 1], [2, 3]) * num_epochs:
        weights, log_ratios, surrogates = [], [], []
        for i in chosen:
            group = batch.groups[i]
            rewards = torch.from_numpy(group.rewards) - torch.tensor(penalties[i])
            advantages = rewards - rewards.nanmean() if len(set(rewards.tolist())) > 1 else torch.zeros(len(rewards))
            logprobs = completion_logprobs(model, group)
            for j, mu in enumerate(behaviour(group)):
                if not mu.isfinite().all():
                    continue
                ratio = plain_ratio(logprobs[j], proximal[i][j])
                surrogates.append(-torch.minimum(ratio * advantages[j], ratio.clamp(0.8, 1.28) * advantages[j]))
                log_ratios.append(proximal[i][j] - mu)
                weights.append((proximal[i][j] - mu).exp().clamp(max=UPPER))
        weight = torch.cat(weights)
        if bound is not None:
            weight = weight * kept_by_second_moment(torch.cat(log_ratios), bound)
        optimizer.zero_grad()
        (weight / weight.mean() * torch.cat(surrogates)).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    return float(np.nanmean(np.concatenate(penalties))), parameters


@pytest.mark.parametrize(("num_ranks", "num_epochs", "bound"), [(1, 1, None), (2, 1, 0.5), (1, 3, None)])
def test_a_step_with_every_prepass_equals_a_plain_loop(
    num_ranks: int, num_epochs: int, bound: float | None, tmp_path: Path
) -> None:
    path = save_tiny_model(tmp_path / "model", tied=False)
    batch = random_batch(11, step=STEP)
    batch.groups[1].logprobs[0] = np.nan
    metrics, parameters, _ = run_ranks(num_ranks, train, path, batch, num_epochs, bound)[0]
    penalty, expected = plain_step(path, batch, num_epochs, bound)
    assert metrics["reward/kl_penalty"] == pytest.approx(penalty, rel=1e-5)
    assert metrics["policy/truncated_fraction"] > 0
    for name, value in expected.items():
        torch.testing.assert_close(parameters[name], value, rtol=0, atol=1e-4 * num_epochs, msg=name)


def test_the_normaliser_and_the_second_moment_take_one_forward_pass_between_them(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path / "model", tied=False)
    (both,), (one,) = (run_ranks(1, train, path, random_batch(11, step=STEP), 1, bound) for bound in (0.5, None))
    assert both[2] == one[2] > 0
    assert both[0]["policy/masked_fraction"] > one[0]["policy/masked_fraction"]
