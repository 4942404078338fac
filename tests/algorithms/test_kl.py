"""KL estimators and the unbiased form, against exact sums over a whole vocabulary."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asyncrl.algorithms import kl
from asyncrl.algorithms.ratio import MAX_RATIO, clamped_log_ratio

P = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
Q = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)
MU = torch.tensor([0.1, 0.6, 0.3], dtype=torch.float64)


@given(st.lists(st.tuples(st.floats(-5, 0), st.floats(-5, 0)), min_size=1, max_size=10))
def test_each_estimator_equals_its_formula_token_by_token(pairs: list[tuple[float, float]]) -> None:
    sampled, other = torch.tensor(pairs, dtype=torch.float64).unbind(-1)
    for t, (p, q) in enumerate(pairs):
        assert kl.k1(sampled, other)[t].item() == pytest.approx(p - q, abs=1e-9)
        assert kl.k2(sampled, other)[t].item() == pytest.approx((p - q) ** 2 / 2, abs=1e-9)
        assert kl.k3(sampled, other)[t].item() == pytest.approx(math.exp(q - p) - 1 - (q - p), abs=1e-9)


def test_k1_and_k3_average_to_the_divergence_over_the_distribution_that_sampled() -> None:
    exact = (P * (P / Q).log()).sum()
    for estimator in (kl.k1, kl.k3):
        torch.testing.assert_close((P * estimator(P.log(), Q.log())).sum(), exact)
    assert (kl.k3(P.log(), Q.log()) >= 0).all()


@pytest.mark.parametrize("name", kl.KL_ESTIMATORS)
def test_the_unbiased_form_has_the_divergences_gradient_although_another_policy_sampled(name: str) -> None:
    logits = P.log().requires_grad_()
    exact = (logits.softmax(-1) * (logits.log_softmax(-1) - Q.log())).sum()
    (expected,) = torch.autograd.grad(exact, logits)

    logprobs = logits.log_softmax(-1)
    estimate = kl.KL_ESTIMATORS[name](logprobs, Q.log())
    terms = kl.unbiased(estimate, logprobs, Q.log(), clamped_log_ratio(logprobs, MU.log()))
    (gradient,) = torch.autograd.grad((MU * terms).sum(), logits)
    torch.testing.assert_close(gradient, expected)
    if name != "k2":
        torch.testing.assert_close((MU * terms).sum(), exact)


def test_the_unbiased_k3_is_what_differentiating_the_weighted_k3_gives() -> None:
    logprobs = P.log().requires_grad_()
    log_ratio = clamped_log_ratio(logprobs, MU.log())
    weighted = log_ratio.exp() * kl.k3(logprobs, Q.log())
    straight = kl.unbiased(kl.k3(logprobs, Q.log()), logprobs, Q.log(), log_ratio)
    torch.testing.assert_close(straight, weighted)
    torch.testing.assert_close(
        torch.autograd.grad(straight.sum(), logprobs)[0], torch.autograd.grad(weighted.sum(), logprobs)[0]
    )


@given(st.floats(-20, 20))
def test_the_bounded_k3_is_k3_up_to_10_and_has_a_bounded_slope_beyond(log_ratio: float) -> None:
    sampled = torch.tensor([-log_ratio], dtype=torch.float64, requires_grad=True)
    other = torch.zeros(1, dtype=torch.float64)
    bounded, plain = kl.KL_ESTIMATORS["k3"](sampled, other), kl.k3(sampled, other)
    (slope,) = torch.autograd.grad(bounded.sum(), sampled)
    if plain.item() < 9.99:
        assert bounded.item() == pytest.approx(plain.item(), abs=1e-12)
    else:
        assert 9.98 < bounded.item() <= plain.item() + 1e-9
    if abs(log_ratio) < 20:
        expected = -math.expm1(min(log_ratio, kl.K3_TANGENT_FROM))
        assert slope.item() == pytest.approx(expected, abs=1e-9)
        assert -12.7 < slope.item() < 1


@given(st.sampled_from(["k1", "k2", "k3"]), st.floats(-20, 20), st.floats(-20, 20))
def test_no_estimator_lets_one_token_weigh_without_bound(name: str, x: float, log_ratio: float) -> None:
    logprobs, reference = (
        torch.tensor([x], dtype=torch.float64, requires_grad=True),
        torch.zeros(1, dtype=torch.float64),
    )
    estimate = kl.KL_ESTIMATORS[name](logprobs, reference)
    (slope,) = torch.autograd.grad(estimate.sum(), logprobs, retain_graph=True)
    assert slope.abs().item() <= 20
    weighted = kl.unbiased(estimate, logprobs, reference, torch.tensor([log_ratio], dtype=torch.float64))
    (slope,) = torch.autograd.grad(weighted.sum(), logprobs)
    assert slope.abs().item() <= MAX_RATIO * 20
