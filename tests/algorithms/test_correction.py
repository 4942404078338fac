"""Importance corrections against loops over sequences."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asyncrl.algorithms.correction import bounds, correct
from asyncrl.algorithms.ratio import clamped_log_ratio
from asyncrl.config.algorithm import AlgorithmConfig
from asyncrl.config.checks.algorithm import ALGORITHM_CHOICES
from tests.support.ragged import Ragged, Sequence, ragged

CORRECTIONS = ALGORITHM_CHOICES["algorithm.correction"]


def loop(sequence: Sequence, algorithm: AlgorithmConfig) -> list[tuple[float, float]]:
    """(weight, scale) of each token, from the definitions in words, without logarithms where it can."""
    ratios = [math.exp(p - mu) for p, mu in zip(sequence.logprobs, sequence.behaviour, strict=True)]
    product = math.prod(ratios[t] for t in sequence.trained)
    mean = product ** (1 / len(sequence.trained)) if sequence.trained else 1.0
    vetoed = any(ratios[t] < algorithm.correction_veto for t in sequence.trained)
    result = []
    for ratio, lag in zip(ratios, sequence.lags, strict=True):
        decay = algorithm.correction_lag_decay**lag
        upper = 1 + (algorithm.correction_upper - 1) * decay
        lower = 1 - (1 - algorithm.correction_lower) * decay if algorithm.correction_lower else 0.0
        level, _, rule = algorithm.correction.partition("_")
        judged = {"none": 1.0, "token": ratio, "sequence": product, "geometric": mean}[level]
        weight = judged
        if rule == "truncate":
            weight = min(max(judged, lower), upper)
        elif rule == "mask":
            weight = (ratio if level == "geometric" else judged) if lower <= judged <= upper else 0.0
        scale = weight / (ratio if (level, rule) == ("geometric", "mask") else judged)
        result.append((0.0, 0.0) if vetoed else (weight, scale))
    return result


configs = st.builds(
    AlgorithmConfig,
    correction=st.sampled_from(CORRECTIONS),
    correction_lower=st.sampled_from([0.0, 0.5, 0.9]),
    correction_upper=st.sampled_from([1.1, 2.0, 5.0]),
    correction_lag_decay=st.sampled_from([1.0, 0.8]),
    correction_veto=st.sampled_from([0.0, 0.3]),
)


def correction_of(data: Ragged, algorithm: AlgorithmConfig) -> tuple[torch.Tensor, torch.Tensor]:
    log_ratio = clamped_log_ratio(data.packed("logprobs"), data.packed("behaviour"))
    result = correct(log_ratio, data.packed("weights") > 0, data.segment_ids, data.packed("lags"), algorithm)
    return result.weights, result.scale


@given(ragged, configs)
def test_a_correction_equals_a_loop_over_sequences(data: Ragged, algorithm: AlgorithmConfig) -> None:
    expected = [pair for sequence in data.sequences for pair in loop(sequence, algorithm)]
    weights, scale = torch.tensor(expected, dtype=torch.float64).unbind(-1)
    result = correction_of(data, algorithm)
    torch.testing.assert_close(result[0], weights, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(result[1], scale, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", CORRECTIONS)
@given(data=ragged, decay=st.sampled_from([1.0, 0.5]))
def test_where_the_policies_agree_every_correction_is_the_identity(name: str, data: Ragged, decay: float) -> None:
    algorithm = AlgorithmConfig(correction=name, correction_lower=0.5, correction_lag_decay=decay, correction_veto=0.1)
    same = Ragged([Sequence(**{**vars(sequence), "behaviour": sequence.logprobs}) for sequence in data.sequences])
    weights, scale = correction_of(same, algorithm)
    assert weights.tolist() == [1.0] * len(weights)
    assert scale.tolist() == [1.0] * len(scale)


def test_the_bounds_tighten_towards_one_with_the_lag_and_no_lower_bound_stays_none() -> None:
    algorithm = AlgorithmConfig(correction_lower=0.5, correction_upper=3.0, correction_lag_decay=0.5)
    lags = torch.tensor([0, 1, 2])
    lower, upper = bounds(lags, algorithm)
    assert lower.tolist() == [0.5, 0.75, 0.875]
    assert upper.tolist() == [3.0, 2.0, 1.5]
    assert bounds(lags, AlgorithmConfig(correction_lag_decay=0.5))[0].tolist() == [0.0, 0.0, 0.0]


def test_a_masked_and_a_truncated_token_are_told_apart_and_nothing_carries_a_gradient() -> None:
    log_ratio = torch.tensor([0.0, 1.0, -9.0], requires_grad=True)
    mask, ids, lags = torch.ones(3, dtype=torch.bool), torch.tensor([0, 1, 2]), torch.zeros(3, dtype=torch.int64)
    result = correct(log_ratio, mask, ids, lags, AlgorithmConfig(correction="token_truncate", correction_veto=1e-3))
    assert result.truncated.tolist() == [False, True, False]
    assert result.masked.tolist() == [False, False, True]
    assert not result.weights.requires_grad
    assert not result.scale.requires_grad
