"""η = 0 is the synchronous algorithm: update for update against a plain GRPO loop that shares no code with asyncrl.

Both loops sample in this process, each from its own weights with the same seeds, so a difference would feed back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch.distributed.device_mesh import DeviceMesh
from transformers import AutoModelForCausalLM, PreTrainedModel

from asyncrl.learn.update.step import Learner
from asyncrl.types import Batch, Group
from tests.support.learn import VOCABULARY, full_parameters, run_ranks, save_tiny_model, tiny_config

pytestmark = pytest.mark.system

NUM_STEPS, NUM_PROMPTS, GROUP_SIZE, MAX_TOKENS, EOS = 5, 4, 4, 6, 0
LR, EPS, CLIP_LOWER, CLIP_UPPER, MAX_GRAD_NORM = 1e-3, 1e-6, 0.2, 0.28, 1.0

CASES = {
    "one update a step": ["algorithm.aggregation=token_mean"],
    "two updates a step, DrGRPO": [
        "algorithm.advantage=dr_grpo",
        "algorithm.aggregation=sequence_sum",
        "learner.mini_batch_size=2",
    ],
    "top-k and top-p": ["algorithm.aggregation=token_mean", "generator.top_k=12", "generator.top_p=0.5"],
}


@dataclass
class Sample:
    prompt: list[int]
    completion: list[int]
    logprobs: list[float]
    reward: float
    left: list[list[int]]
    """For each token those that could be sampled, itself first; empty = the whole vocabulary."""


def likeliest(table: torch.Tensor, top_k: int, top_p: float) -> list[int]:
    """The fewest of the k likeliest tokens that have a share of at least top_p of those k's probability."""
    values, tokens = table.topk(top_k)
    return tokens[: int((values.softmax(0).cumsum(0) < top_p).sum()) + 1].tolist()


def sample_groups(model: PreTrainedModel, step: int, is_cut: bool) -> list[list[Sample]]:
    """One token at a time; the reward is the share of tokens from the lower half of the vocabulary."""
    dice = torch.Generator().manual_seed(step)
    groups = []
    for _ in range(NUM_PROMPTS):
        prompt = torch.randint(1, VOCABULARY, (3,), generator=dice).tolist()
        group = []
        for _ in range(GROUP_SIZE):
            completion: list[int] = []
            logprobs: list[float] = []
            left: list[list[int]] = []
            while len(completion) < MAX_TOKENS and EOS not in completion:
                with torch.no_grad():
                    table = model(torch.tensor([prompt + completion])).logits[0, -1].log_softmax(-1)
                if is_cut:
                    kept = likeliest(table, 12, 0.5)
                    table = torch.full_like(table, -torch.inf).index_copy(0, torch.tensor(kept), table[kept])
                    table = table.log_softmax(-1)
                token = int(torch.multinomial(table.exp(), 1, generator=dice))
                if is_cut:
                    left.append([token, *(other for other in kept if other != token)])
                completion.append(token)
                logprobs.append(table[token].item())
            reward = sum(token < VOCABULARY // 2 for token in completion) / len(completion)
            group.append(Sample(prompt, completion, logprobs, reward, left))
        groups.append(group)
    return groups


def token_logprobs(model: PreTrainedModel, sample: Sample) -> torch.Tensor:
    ids = torch.tensor([sample.prompt + sample.completion])
    table = model(ids).logits[0, len(sample.prompt) - 1 : -1]
    for row, kept in zip(table, sample.left, strict=False):
        row.data[[token for token in range(VOCABULARY) if token not in kept]] = -torch.inf
    table = table.log_softmax(-1)
    return table.gather(-1, torch.tensor(sample.completion)[:, None])[:, 0]


def plain_update(
    model: PreTrainedModel, optimizer: torch.optim.Optimizer, groups: list[list[Sample]], dr_grpo: bool
) -> None:
    terms = []
    for group in groups:
        rewards = torch.tensor([sample.reward for sample in group])
        advantages = rewards - rewards.mean()
        if not dr_grpo and (rewards != rewards[0]).any():
            advantages = advantages / (rewards.std() + 1e-6)
        for sample, advantage in zip(group, advantages, strict=True):
            ratio = (token_logprobs(model, sample) - torch.tensor(sample.logprobs)).exp()
            clipped = ratio.clamp(1 - CLIP_LOWER, 1 + CLIP_UPPER)
            terms.append(-torch.minimum(ratio * advantage, clipped * advantage))
    total = torch.cat(terms).sum()
    divisor = len(terms) * MAX_TOKENS if dr_grpo else sum(len(term) for term in terms)
    optimizer.zero_grad()
    (total / divisor).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
    optimizer.step()


def plain_loop(path: str, dr_grpo: bool, is_cut: bool) -> Iterator[tuple[list[list[Sample]], dict[str, torch.Tensor]]]:
    """Sample a batch, train on it, repeat; after each step what was sampled and the parameters."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.999), eps=EPS, weight_decay=0.0)
    updates = 2 if dr_grpo else 1
    for step in range(NUM_STEPS):
        groups = sample_groups(model, step, is_cut)
        for part in np.array_split(np.arange(NUM_PROMPTS), updates):
            plain_update(model, optimizer, [groups[i] for i in part], dr_grpo)
        yield groups, {name: value.detach().clone() for name, value in model.named_parameters()}


def as_batch(step: int, groups: list[list[Sample]]) -> Batch:
    def flat(name: str, group: list[Sample]) -> np.ndarray:
        return np.concatenate([np.array(getattr(sample, name)) for sample in group])

    def left(group: list[Sample]) -> list[list[int]]:
        return [tokens for sample in group for tokens in sample.left]

    return Batch(
        step=step,
        groups=[
            Group(
                index=step * NUM_PROMPTS + position,
                row=position,
                prompt_token_ids=np.array(group[0].prompt, np.int32),
                lengths=np.array([len(sample.completion) for sample in group], np.int32),
                tokens=flat("completion", group).astype(np.int32),
                logprobs=flat("logprobs", group).astype(np.float32),
                versions=np.full(sum(len(sample.completion) for sample in group), step, np.int32),
                rewards=np.array([sample.reward for sample in group], np.float32),
                correct=np.zeros(len(group), bool),
                truncated=np.array([len(sample.completion) == MAX_TOKENS for sample in group]),
                support_ids=np.array([token for tokens in left(group) for token in tokens], np.int32),
                support_sizes=np.array([len(tokens) for tokens in left(group)], np.int32),
            )
            for position, group in enumerate(groups)
        ],
    )


def asyncrl_loop(
    mesh: DeviceMesh, path: str, overrides: list[str]
) -> list[tuple[list[list[Sample]], dict[str, torch.Tensor]]]:
    settings = [f"learner.lr={LR}", f"learner.eps={EPS}", f"generator.max_tokens={MAX_TOKENS}"]
    learner = Learner(tiny_config(path, "replay.max_staleness=0", *settings, *overrides), mesh, NUM_STEPS)
    sampler = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    results = []
    for step in range(NUM_STEPS):
        sampler.load_state_dict(full_parameters(learner), strict=False)
        groups = sample_groups(sampler, step, learner.config.generator.top_k > 0)
        metrics = learner.train(as_batch(step, groups))
        assert metrics["staleness/max"] == 0
        assert metrics["lag_0/tokens"] == metrics["tokens/trained"] > 0
        results.append((groups, full_parameters(learner)))
    return results


@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_with_a_staleness_of_zero_every_update_equals_the_synchronous_loops(
    case: str, num_ranks: int, tmp_path: object
) -> None:
    path = save_tiny_model(tmp_path / "model", tied=False)  # type: ignore[operator]
    ours = run_ranks(num_ranks, asyncrl_loop, path, CASES[case])[0]
    start = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).state_dict()
    plain = plain_loop(path, "DrGRPO" in case, "top-k" in case)
    for (groups, parameters), (expected_groups, expected) in zip(ours, plain, strict=True):
        assert [[s.completion for s in group] for group in groups] == [
            [s.completion for s in group] for group in expected_groups
        ]
        for name, value in expected.items():
            torch.testing.assert_close(parameters[name], value, rtol=0, atol=1e-5, msg=name)
    assert max((expected[name] - start[name]).abs().max() for name in expected) > LR
