"""What an environment gave is read by the model and trained by nothing: wire → mini-batches → packing → loss."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncrl.config.algorithm import AlgorithmConfig
from asyncrl.errors import StalenessError
from asyncrl.learn.update.batch_metrics import batch_metrics
from asyncrl.learn.update.mini_batches import mini_batches, token_lags
from asyncrl.learn.update.objective import objective
from asyncrl.learn.update.packing import Layout, build_micro_batch, num_tokens_of
from asyncrl.transport.wire import group_from_wire, group_to_wire
from asyncrl.types import Batch, Group
from tests.support.learn import VOCABULARY, random_batch, with_turns

AGGREGATIONS = ("token_mean", "sequence_mean", "sequence_sum", "prompt_mean")


def episodes(seed: int, step: int = 3) -> Batch:
    rng = np.random.default_rng(seed)
    batch = random_batch(seed, step=step, num_groups=3)
    return replace(batch, groups=[with_turns(rng, group) for group in batch.groups])


def over_the_wire(batch: Batch) -> Batch:
    groups = []
    for group in batch.groups:
        header, frames = group_to_wire(group)
        groups.append(group_from_wire(header, [bytes(frame) for frame in frames]))
    return replace(batch, groups=groups)


def expected_gradient_rows(group: Group) -> list[list[int]]:
    """For each completion the positions, in its whole sequence, whose output predicts a sampled token."""
    rows = []
    for spans in group.spans:
        place, positions = len(group.prompt_token_ids), []
        for number, run in enumerate(spans):
            positions += [place + k - 1 for k in range(run) if number % 2 == 0]
            place += run
        rows.append(positions)
    return rows


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["padded", "shared", "packed"]), st.sampled_from(AGGREGATIONS))
def test_only_outputs_that_predict_a_sampled_token_have_a_gradient(seed: int, layout: Layout, aggregation: str) -> None:
    batch = over_the_wire(episodes(seed))
    for group in batch.groups:
        group.rewards[:] = [0, 1, 2, 4]  # no advantage is 0
    algorithm = AlgorithmConfig(aggregation=aggregation, loss="reinforce", behaviour_coef=0.1)
    (mini_batch,) = mini_batches(batch, algorithm, 9, 3, 8)
    expected = [rows for group in batch.groups for rows in expected_gradient_rows(group)]
    micro_batch = build_micro_batch(mini_batch, [[i] for i in range(12)], layout)
    logits = torch.randn(micro_batch.input_ids.numel(), VOCABULARY, requires_grad=True)
    log_probs = logits.log_softmax(-1)[micro_batch.indices]
    chosen = log_probs.gather(1, micro_batch.actions.targets[:, None])[:, 0]
    entropy = -(log_probs.exp() * log_probs).sum(1)
    objective(chosen, entropy, micro_batch.actions, algorithm).losses["loss/total"].backward()
    assert logits.grad is not None
    lengths = [num_tokens_of(mini_batch, [i]) for i in range(12)]
    starts = np.arange(12) * micro_batch.input_ids.shape[1] if layout == "padded" else np.cumsum(lengths) - lengths
    with_gradient = logits.grad.abs().sum(1).nonzero()[:, 0].tolist()
    assert with_gradient == [start + row for start, rows in zip(starts, expected, strict=True) for row in rows]


@given(st.integers(0, 10**6), st.sampled_from(["padded", "shared", "packed"]))
def test_the_model_reads_the_whole_episode_and_each_target_follows_its_output(seed: int, layout: Layout) -> None:
    batch = over_the_wire(episodes(seed))
    (mini_batch,) = mini_batches(batch, AlgorithmConfig(), 9, 3, 8)
    micro_batch = build_micro_batch(mini_batch, [[5]], layout)
    group = batch.groups[1]
    start, end = group.lengths[0], group.lengths[:2].sum()
    assert micro_batch.input_ids[0].tolist() == [*group.prompt_token_ids, *group.tokens[start:end]]
    assert torch.equal(micro_batch.input_ids[0][micro_batch.indices + 1], micro_batch.actions.targets)
    assert micro_batch.actions.targets.tolist() == group.tokens[start:end][group.sampled[start:end]].tolist()


@given(st.integers(0, 10**6))
def test_what_stands_at_an_environments_tokens_changes_nothing_that_is_trained(seed: int) -> None:
    batch = episodes(seed)
    spoilt = replace(batch, groups=[spoil(group) for group in batch.groups])
    assert np.array_equal(token_lags(batch), token_lags(spoilt))
    (plain,), (other,) = (mini_batches(item, AlgorithmConfig(), 2, 3, 8) for item in (batch, spoilt))
    for name in ("targets", "behaviour_logprobs", "lags", "segment_ids", "advantages", "weights"):
        assert torch.equal(getattr(plain.actions, name), getattr(other.actions, name))
    assert batch_metrics(batch, 2) == batch_metrics(spoilt, 2)


@given(st.integers(0, 10**6))
def test_what_a_token_was_sampled_from_follows_it_to_its_mini_batch(seed: int) -> None:
    batch = episodes(seed)
    batch = over_the_wire(replace(batch, groups=[with_supports(group) for group in batch.groups]))
    for mini_batch in mini_batches(batch, AlgorithmConfig(), 9, 2, 8):
        micro_batch = build_micro_batch(mini_batch, [[len(mini_batch.prompts) - 1], [0]], "packed")
        for actions in (mini_batch.actions, micro_batch.actions):
            for target, support in zip(actions.targets.tolist(), actions.supports.tolist(), strict=True):
                assert support[0] == target
                assert [token for token in support if token >= 0] == [target, *range(1, 1 + target % 4)]


def with_supports(group: Group) -> Group:
    sets = [
        [token, *range(1, 1 + token % 4)] if is_sampled else []
        for token, is_sampled in zip(group.tokens.tolist(), group.sampled, strict=True)
    ]
    sizes = np.asarray([len(tokens) for tokens in sets], np.int32)
    return replace(group, support_ids=np.fromiter(chain(*sets), np.int32), support_sizes=sizes)


def spoil(group: Group) -> Group:
    return replace(
        group,
        tokens=np.where(group.sampled, group.tokens, np.int32(7)),
        logprobs=np.where(group.sampled, group.logprobs, np.float32(np.nan)),
        versions=np.where(group.sampled, group.versions, np.int32(10**6)),
    )


def test_a_sampled_token_of_a_later_version_is_still_refused() -> None:
    batch = episodes(4)
    with pytest.raises(StalenessError, match="later versions"):
        token_lags(replace(batch, step=0))


def test_turns_and_environments_are_counted_and_a_batch_without_them_says_nothing() -> None:
    group = replace(random_batch(1).groups[0], lengths=np.array([5, 1, 1, 1], np.int32))
    group = replace(group, **{name: getattr(group, name)[:1].repeat(8) for name in ("tokens", "logprobs", "versions")})
    batch = Batch(step=9, groups=[replace(group, spans=[[1, 2, 2], [1], [1], [1]], environment_s=2.0)])
    metrics = batch_metrics(batch, 9)
    assert metrics["environment/turns_mean"] == 1.25
    assert metrics["environment/turns_max"] == 2
    assert metrics["environment/tokens_mean"] == 0.5
    assert metrics["environment/seconds_mean"] == 0.5
    assert not [name for name in batch_metrics(random_batch(1), 9) if name.startswith("environment/")]
