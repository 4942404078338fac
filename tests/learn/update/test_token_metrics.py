"""Diagnostics by lag, against a loop over tokens, on one rank and split over two."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.distributed.device_mesh import DeviceMesh

from asyncrl.learn.update.batch_metrics import Metrics
from asyncrl.learn.update.mini_batches import ActionTokens
from asyncrl.learn.update.token_metrics import FAMILIES, TokenMetrics
from tests.support.learn import run_ranks

NUM_TOKENS = 60
ENGINES = ("sglang", "vllm")
BUCKET_OF_LAG = {0: "lag_0", 1: "lag_1", 2: "lag_2", 3: "lag_3_4", 4: "lag_3_4", 5: "lag_5_8", 8: "lag_5_8"}
BUCKET_OF_LAG |= {9: "lag_9_16", 16: "lag_9_16", 40: "lag_17_up"}


def tokens() -> tuple[ActionTokens, dict[str, torch.Tensor]]:
    rng = np.random.default_rng(0)
    zeros = torch.zeros(NUM_TOKENS)
    lags = torch.from_numpy(rng.choice(list(BUCKET_OF_LAG), NUM_TOKENS))
    engines = (lags == 0).cumsum(0) % 2  # by turns, so that each has some
    weights = torch.from_numpy((rng.random(NUM_TOKENS) < 0.8).astype(np.float32))
    stats = {name: torch.from_numpy(rng.uniform(0.1, 3, NUM_TOKENS)) for name in ("ratio", "clip_fraction")}
    whole = torch.zeros(NUM_TOKENS, 0, dtype=torch.int32)
    return ActionTokens(zeros.long(), zeros, lags, engines, zeros.long(), zeros, weights, whole), stats


def reduced(mesh: DeviceMesh) -> Metrics:
    """Two updates, each of half the tokens, in micro-batches of up to 7."""
    actions, stats = tokens()
    metrics = TokenMetrics(torch.device("cpu"), ENGINES)
    for update in torch.arange(NUM_TOKENS).split(NUM_TOKENS // 2):
        metrics.begin_update()
        for part in update[mesh.get_local_rank() :: mesh.size()].split(7):
            losses = {"loss/total": torch.tensor(float(len(part)))}
            metrics.count_places(len(part), 8)
            metrics.add(losses, {n: s[part] for n, s in stats.items()}, actions.select(part))
    return metrics.reduce(mesh.get_group())


def loop(num_ranks: int) -> Metrics:
    actions, stats = tokens()
    expected: Metrics = {"loss/total": NUM_TOKENS / 2}
    trained = [t for t in range(NUM_TOKENS) if actions.mask[t]]
    expected["tokens/trained"] = len(trained)
    num_passes = sum(math.ceil(len(range(rank, NUM_TOKENS // 2, num_ranks)) / 7) for rank in range(num_ranks)) * 2
    expected["tokens/packing_efficiency"] = NUM_TOKENS / (8 * num_passes)
    for family in ("policy", *FAMILIES, *(f"engine/{engine}/mismatch" for engine in ENGINES)):
        chosen = [t for t in trained if family in ("policy", BUCKET_OF_LAG[int(actions.lags[t])])]
        if family.endswith("mismatch"):
            chosen = [t for t in trained if actions.lags[t] == 0 and t < NUM_TOKENS // 2]
        if family.startswith("engine/"):
            engine = ENGINES.index(family.split("/")[1])
            chosen = [t for t in chosen if actions.engines[t] == engine]
        ratios = [stats["ratio"][t].item() for t in chosen]
        if family != "policy":
            expected[f"{family}/tokens"] = len(chosen)
        expected[f"{family}/clip_fraction"] = sum(stats["clip_fraction"][t].item() for t in chosen) / len(chosen)
        expected[f"{family}/ratio_mean"] = sum(ratios) / len(ratios)
        expected[f"{family}/ratio_max"] = max(ratios)
        squares = sum(ratio**2 for ratio in ratios)
        expected[f"{family}/effective_sample_size"] = sum(ratios) ** 2 / (len(ratios) * squares)
    return expected


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_statistics_by_lag_equal_a_loop_over_the_trained_tokens_of_all_ranks(num_ranks: int) -> None:
    expected = loop(num_ranks)
    for metrics in run_ranks(num_ranks, reduced):
        assert metrics == {name: pytest.approx(value) for name, value in expected.items()}


def empty_and_partial(mesh: DeviceMesh) -> tuple[Metrics, Metrics]:
    metrics = TokenMetrics(torch.device("cpu"))
    nothing = metrics.reduce(mesh.get_group())
    actions, stats = tokens()
    metrics.begin_update()
    metrics.count_places(3, 4)
    recent = (actions.lags == 1).nonzero()[:, 0]
    metrics.add({"loss/total": torch.tensor(1.0)}, {n: s[recent] for n, s in stats.items()}, actions.select(recent))
    return nothing, metrics.reduce(mesh.get_group())


def test_lags_that_no_token_has_are_left_out() -> None:
    nothing, recent = run_ranks(1, empty_and_partial)[0]
    assert nothing == {"tokens/trained": 0.0}
    assert {name.split("/")[0] for name in recent} == {"loss", "tokens", "policy", "lag_1"}
