"""Policy losses: gradients against finite differences, extremes. Values: tests/learn/update/test_objective.py."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asyncrl.algorithms.loss import cispo, dppo_tv, gspo, policy_loss, ppo_clip, reinforce
from asyncrl.algorithms.proximal import interpolated
from asyncrl.algorithms.ratio import MAX_LOG_RATIO, MAX_RATIO, clamped_log_ratio
from asyncrl.config.algorithm import AlgorithmConfig
from asyncrl.config.checks.algorithm import ALGORITHM_CHOICES
from tests.support.ragged import Ragged, ragged

LOSSES = ALGORITHM_CHOICES["algorithm.loss"]
LOWER, UPPER = 0.2, 0.28


@pytest.mark.parametrize("dual_clip", [None, 3.0])
@given(data=ragged)
def test_the_clipped_surrogates_have_the_gradient_of_finite_differences(data: Ragged, dual_clip: float | None) -> None:
    log_ratio = (data.packed("logprobs") - data.packed("behaviour")).requires_grad_()
    mask, ids, advantages = data.packed("weights") > 0, data.segment_ids, data.advantages

    def values(x: torch.Tensor) -> torch.Tensor:
        token = ppo_clip(x, advantages, LOWER, UPPER, dual_clip).losses
        sequence = gspo(x, advantages, mask, ids, LOWER, UPPER).losses
        return torch.cat([token, sequence])

    assert torch.autograd.gradcheck(values, log_ratio, eps=1e-7, atol=1e-5)


@given(st.floats(-3, 3), st.sampled_from([-1.7, 0.4]))
def test_clipped_says_exactly_which_tokens_have_no_gradient(x: float, advantage: float) -> None:
    logprobs = torch.tensor([x - 3.1], dtype=torch.float64, requires_grad=True)
    behaviour, advantages = torch.tensor([-3.1], dtype=torch.float64), torch.tensor([advantage])
    log_ratio = clamped_log_ratio(logprobs, behaviour)
    for loss in (
        ppo_clip(log_ratio, advantages, LOWER, UPPER),
        ppo_clip(log_ratio, advantages, LOWER, UPPER, 3.0),
        dppo_tv(logprobs, behaviour, log_ratio, advantages, 0.02, 0.05),
    ):
        (gradient,) = torch.autograd.grad(loss.losses.sum(), logprobs, retain_graph=True)
        assert loss.clipped.item() == (gradient.item() == 0)


def test_dual_clip_bounds_the_loss_of_a_token_with_a_negative_advantage() -> None:
    log_ratio, advantages = torch.tensor([math.log(9.0)] * 2), torch.tensor([-2.0, 2.0])
    assert ppo_clip(log_ratio, advantages, LOWER, UPPER).losses.tolist() == pytest.approx([18.0, -2.56])
    assert ppo_clip(log_ratio, advantages, LOWER, UPPER, 3.0).losses.tolist() == pytest.approx([6.0, -2.56])


def test_cispo_and_reinforce_leave_each_token_its_gradient() -> None:
    logprobs = torch.tensor([-0.1, -3.0, -1.0], dtype=torch.float64, requires_grad=True)
    log_ratio = torch.tensor([2.0, -2.0, 0.0], dtype=torch.float64)
    advantages = torch.tensor([1.0, -1.0, 2.0], dtype=torch.float64)
    bounded = cispo(logprobs, log_ratio, advantages, LOWER, UPPER)
    (gradient,) = torch.autograd.grad(bounded.losses.sum(), logprobs)
    assert gradient.tolist() == pytest.approx([-1.28, 0.8, -2.0])
    assert bounded.clipped.tolist() == [True, True, False]
    (gradient,) = torch.autograd.grad(reinforce(logprobs, advantages).losses.sum(), logprobs)
    assert gradient.tolist() == [-1.0, 1.0, -2.0]


def test_dppo_judges_the_difference_of_probabilities_and_not_the_ratio() -> None:
    behaviour = torch.tensor([0.001, 0.5, 0.9, 0.9]).log()
    logprobs = torch.tensor([0.01, 0.75, 0.6, 0.6]).log()  # ratios 10, 1.5, 0.67, 0.67
    loss = dppo_tv(logprobs, behaviour, logprobs - behaviour, torch.tensor([1.0, 1.0, -1.0, 1.0]), 0.2, 0.2)
    assert loss.clipped.tolist() == [False, True, True, False]
    assert loss.losses.tolist() == pytest.approx([-10.0, 0.0, 0.0, -2 / 3], rel=1e-4)


@pytest.mark.parametrize("name", LOSSES)
def test_an_impossible_log_ratio_stays_finite(name: str) -> None:
    logprobs = torch.tensor([-1e4, -0.1], requires_grad=True)
    behaviour = torch.tensor([-0.1, -1e4])
    log_ratio = clamped_log_ratio(logprobs, behaviour)
    ids, mask = torch.tensor([0, 1]), torch.tensor([True, True])
    algorithm = AlgorithmConfig(loss=name)
    loss = policy_loss(logprobs, behaviour, log_ratio, torch.tensor([-1.0, -1.0]), mask, ids, algorithm).losses.sum()
    (gradient,) = torch.autograd.grad(loss, logprobs)
    assert log_ratio.tolist() == [-MAX_LOG_RATIO, MAX_LOG_RATIO]
    assert loss.isfinite()
    assert gradient.isfinite().all()


def test_the_interpolated_proximal_policy_moves_from_the_behaviour_policy_to_the_present_one_with_the_lag() -> None:
    logprobs = torch.full((4,), -1.0, requires_grad=True)
    proximal = interpolated(logprobs, torch.full((4,), -2.0), torch.tensor([0, 1, 3, 9]), progress=0.5)
    assert proximal.tolist() == pytest.approx([-2.0, -4 / 3, -8 / 7, -20 / 19])
    assert not proximal.requires_grad


def test_in_the_steps_first_update_the_interpolated_proximal_policy_is_the_present_one_at_lag_0_too() -> None:
    logprobs = torch.tensor([-1.0, -3.0], requires_grad=True)
    proximal = interpolated(logprobs, torch.full((2,), -2.0), torch.tensor([0, 4]), progress=0.0)
    assert proximal.tolist() == logprobs.tolist()
    assert not proximal.requires_grad


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("advantage", [-1.0, 1.0])
def test_no_token_weighs_more_than_the_largest_ratio(name: str, advantage: float) -> None:
    logprobs = torch.tensor([math.log(0.15)], requires_grad=True)
    behaviour = torch.tensor([math.log(1e-6)])
    log_ratio, mask = clamped_log_ratio(logprobs, behaviour), torch.tensor([True])
    arguments = (torch.tensor([advantage]), mask, torch.tensor([0]), AlgorithmConfig(loss=name))
    loss = policy_loss(logprobs, behaviour, log_ratio, *arguments)
    (gradient,) = torch.autograd.grad(loss.losses.sum(), logprobs)
    assert gradient.abs().item() <= MAX_RATIO * (1 + 1e-6)
    if name == "dppo_tv":  # 0.15 is within the bound of 0.2, so the token is trained, with its truncated weight
        assert gradient.item() == pytest.approx(-advantage * MAX_RATIO)
