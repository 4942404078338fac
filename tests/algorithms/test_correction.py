"""Importance corrections against loops over sequences."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asyncrl.algorithms.correction import bounds, correct
from asyncrl.algorithms.loss import carried_ratio
from asyncrl.algorithms.ratio import MAX_RATIO, clamped_log_ratio
from asyncrl.algorithms.rejection import largest_kept_square, rejected
from asyncrl.config.algorithm import AlgorithmConfig
from asyncrl.config.checks.algorithm import ALGORITHM_CHOICES
from tests.support.ragged import Ragged, Sequence, ragged

CORRECTIONS = ALGORITHM_CHOICES["algorithm.correction"]
REJECTIONS = [name for name in ALGORITHM_CHOICES["algorithm.rejection"] if name != "second_moment"]
"""By the sequence; second_moment is by the whole mini-batch."""


def rejection_loop(sequence: Sequence, ratios: list[float], algorithm: AlgorithmConfig) -> list[bool]:
    """Whether each token is rejected, by plain Python over the sequence."""
    estimators = {
        "k1": lambda x: -math.log(x),
        "k2": lambda x: math.log(x) ** 2 / 2,
        "k3": lambda x: x - 1 - math.log(x),
    }
    name, bound = algorithm.rejection, algorithm.rejection_bound or 0.0
    vetoed = any(ratios[t] < algorithm.correction_veto for t in sequence.trained)
    if name == "none" or vetoed:
        return [vetoed] * len(ratios)
    each = [estimators[name[-2:]](ratio) for ratio in ratios]
    trained = [each[t] for t in sequence.trained]
    if name.startswith("token"):
        return [value > bound for value in each]
    if name.startswith("sequence_max"):
        return [any(value > bound for value in trained)] * len(ratios)
    mean = sum(trained) / max(1, len(trained))
    return [mean > bound and (name.startswith("sequence") or sequence.advantage < 0)] * len(ratios)


def loop(
    sequence: Sequence, algorithm: AlgorithmConfig, carried: list[float] | None = None
) -> list[tuple[float, float]]:
    """(weight, scale) of each token, from the definitions in words, without logarithms where it can."""
    ratios = [math.exp(p - mu) for p, mu in zip(sequence.logprobs, sequence.behaviour, strict=True)]
    product = math.prod(ratios[t] for t in sequence.trained)
    mean = product ** (1 / len(sequence.trained)) if sequence.trained else 1.0
    rejected = rejection_loop(sequence, ratios, algorithm)
    oldest = max((sequence.lags[t] for t in sequence.trained), default=0)
    result = []
    for t, (ratio, lag, dropped) in enumerate(zip(ratios, sequence.lags, rejected, strict=True)):
        level, _, rule = algorithm.correction.partition("_")
        decay = algorithm.correction_lag_decay ** (lag if level == "token" else oldest)
        upper = 1 + (algorithm.correction_upper - 1) * decay
        lower = 1 - (1 - algorithm.correction_lower) * decay if algorithm.correction_lower else 0.0
        judged = {"none": 1.0, "token": ratio, "sequence": product, "geometric": mean}[level]
        weight = judged if carried is None else carried[t]
        if rule == "truncate":
            weight = min(max(judged, lower), upper)
        elif rule == "mask":
            weight = min(ratio, MAX_RATIO) if level == "geometric" and carried is None else weight
            weight = weight if lower <= judged <= upper else 0.0
        scale = weight if carried is None else weight / carried[t]
        result.append((0.0, 0.0) if dropped else (weight, scale))
    return result


LOSSES = st.sampled_from(["reinforce", "dppo_tv"])
configs = st.builds(
    AlgorithmConfig,
    loss=LOSSES,
    correction=st.sampled_from(CORRECTIONS),
    correction_lower=st.sampled_from([0.0, 0.5, 0.9]),
    correction_upper=st.sampled_from([1.1, 2.0, 5.0]),
    correction_lag_decay=st.sampled_from([1.0, 0.8]),
    correction_veto=st.sampled_from([0.0, 0.3]),
    rejection=st.sampled_from(REJECTIONS),
    rejection_bound=st.sampled_from([0.02, 0.2]),
)


def correction_of(data: Ragged, algorithm: AlgorithmConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and scale, for a loss that carries the token's own ratio unless it is reinforce."""
    log_ratio, mask = clamped_log_ratio(data.packed("logprobs"), data.packed("behaviour")), data.packed("weights") > 0
    carried = carried_ratio(log_ratio, data.advantages, mask, data.segment_ids, algorithm)
    dropped = rejected(log_ratio, data.advantages, mask, data.segment_ids, algorithm)
    result = correct(log_ratio, carried, dropped, mask, data.segment_ids, data.packed("lags"), algorithm)
    return result.weights, result.scale


@given(ragged, configs)
def test_a_correction_equals_a_loop_over_sequences(data: Ragged, algorithm: AlgorithmConfig) -> None:
    carried = algorithm.loss == "dppo_tv"
    expected = []
    for sequence in data.sequences:
        ratios = [math.exp(p - mu) for p, mu in zip(sequence.logprobs, sequence.behaviour, strict=True)]
        expected += loop(sequence, algorithm, [min(ratio, MAX_RATIO) for ratio in ratios] if carried else None)
    weights, scale = torch.tensor(expected, dtype=torch.float64).unbind(-1)
    result = correction_of(data, algorithm)
    torch.testing.assert_close(result[0], weights, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(result[1], scale, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", CORRECTIONS)
@given(data=ragged, decay=st.sampled_from([1.0, 0.5]), loss=LOSSES)
def test_where_the_policies_agree_every_correction_is_the_identity(
    name: str, data: Ragged, decay: float, loss: str
) -> None:
    algorithm = AlgorithmConfig(
        loss=loss, correction=name, correction_lower=0.5, correction_lag_decay=decay, correction_veto=0.1
    )
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
    algorithm = AlgorithmConfig(correction="token_truncate", correction_veto=1e-3)
    dropped = rejected(log_ratio, torch.ones(3), mask, ids, algorithm)
    result = correct(log_ratio, None, dropped, mask, ids, lags, algorithm)
    assert result.truncated.tolist() == [False, True, False]
    assert result.masked.tolist() == [False, False, True]
    assert not result.weights.requires_grad
    assert not result.scale.requires_grad


def sequence_of_log_ratio(log_ratio: float) -> Ragged:
    """Four tokens whose log ratios add up to `log_ratio`, with the lags 4, 4, 0, 0."""
    behaviour = [-3.0, -2.5, -4.0, -3.5]
    zeros = [0.0] * 4
    logprobs = [mu + log_ratio / 4 for mu in behaviour]
    return Ragged([Sequence(logprobs, behaviour, zeros, zeros, zeros, [4, 4, 0, 0], [0.25] * 4, 1.0)])


@given(loss=LOSSES, log_ratio=st.sampled_from([-12.0, -0.1, 0.3, 8.0]), lower=st.sampled_from([0.0, 0.5]))
def test_a_truncated_sequence_weighs_what_its_clamped_product_is_under_every_loss(
    loss: str, log_ratio: float, lower: float
) -> None:
    data = sequence_of_log_ratio(log_ratio)
    algorithm = AlgorithmConfig(loss=loss, correction="sequence_truncate", correction_lower=lower)
    weights, scale = correction_of(data, algorithm)
    expected = min(max(math.exp(log_ratio), lower), 2.0)  # as verl's rollout_is=sequence and TRL's sequence_truncate
    carried = math.exp(log_ratio / 4) if loss == "dppo_tv" else 1.0
    assert weights.tolist() == pytest.approx([expected] * 4)
    assert (scale * carried).tolist() == pytest.approx([expected] * 4)


@pytest.mark.parametrize("name", ["sequence_mask", "geometric_mask", "sequence_truncate", "geometric_truncate"])
@given(data=ragged, loss=LOSSES)
def test_a_sequence_is_never_cut_in_two_whatever_its_lags(name: str, data: Ragged, loss: str) -> None:
    algorithm = AlgorithmConfig(
        loss=loss, correction=name, correction_lower=0.5, correction_upper=1.5, correction_lag_decay=0.8
    )
    log_ratio, mask = clamped_log_ratio(data.packed("logprobs"), data.packed("behaviour")), data.packed("weights") > 0
    carried = carried_ratio(log_ratio, data.advantages, mask, data.segment_ids, algorithm)
    dropped = torch.zeros_like(mask)
    result = correct(log_ratio, carried, dropped, mask, data.segment_ids, data.packed("lags"), algorithm)
    for values in (result.masked, result.truncated):
        for sequence in range(len(data.sequences)):
            assert len(values[data.segment_ids == sequence].unique()) == 1


def test_a_sequence_of_several_lags_is_judged_by_its_oldest_token() -> None:
    settings = {"loss": "dppo_tv", "correction_upper": 2.0, "correction_lag_decay": 0.8}
    data = sequence_of_log_ratio(4 * math.log(1.49))  # within the bounds of lag 0, 2, and not of lag 4, 1.41
    weights, _ = correction_of(data, AlgorithmConfig(correction="geometric_mask", **settings))
    assert weights.tolist() == [0.0] * 4
    weights, _ = correction_of(data, AlgorithmConfig(correction="geometric_truncate", **settings))
    assert weights.tolist() == pytest.approx([1 + 0.8**4] * 4)


def test_deepseeks_mask_drops_a_sequence_that_is_both_unlikely_and_to_be_unlearned() -> None:
    behaviour = torch.tensor([-1.0, -1.0, -1.0, -1.0, -1.0, -1.0])
    logprobs = torch.tensor([-2.0, -1.0, -2.0, -1.0, -1.2, -1.0])  # mean log μ/π_θ of 0.5, 0.5, 0.1
    advantages, ids = torch.tensor([-1.0, -1.0, 1.0, 1.0, -1.0, -1.0]), torch.tensor([0, 0, 1, 1, 2, 2])
    algorithm = AlgorithmConfig(rejection="negative_sequence_k1", rejection_bound=0.3)
    result = rejected(logprobs - behaviour, advantages, torch.ones(6, dtype=torch.bool), ids, algorithm)
    assert result.tolist() == [True, True, False, False, False, False]


@given(st.lists(st.floats(0, 3), max_size=30), st.sampled_from([0.04, 0.5]))
def test_the_largest_second_moments_are_dropped_until_their_mean_is_within_the_bound(
    squares: list[float], bound: float
) -> None:
    kept = sorted(squares)
    while kept and sum(kept) / len(kept) > bound:
        largest = kept[-1]
        kept = [square for square in kept if square < largest]
    threshold = largest_kept_square(torch.tensor(squares, dtype=torch.float64), bound)
    assert sorted(square for square in squares if square <= threshold) == kept


def test_a_second_moment_above_the_mini_batchs_largest_is_not_trained_whatever_its_sign() -> None:
    log_ratio = torch.tensor([0.1, -0.5, 0.6, 0.0])
    algorithm = AlgorithmConfig(rejection="second_moment", rejection_bound=0.04)
    mask, ids = torch.ones(4, dtype=torch.bool), torch.zeros(4, dtype=torch.int64)
    dropped = rejected(log_ratio, torch.tensor([1.0, 1.0, -1.0, 1.0]), mask, ids, algorithm, largest_square=0.2)
    assert dropped.tolist() == [False, True, True, False]
