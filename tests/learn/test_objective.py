"""The objective, value and gradient, against a loop over sequences in plain Python for every loss and correction."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asyncrl.config.algorithm import AlgorithmConfig
from asyncrl.config.checks.algorithm import ALGORITHM_CHOICES
from asyncrl.learn.update.objective import Objective, objective
from tests.algorithms.test_correction import loop as correction_loop
from tests.support.ragged import Ragged, Sequence, ragged

ORDINARY = AlgorithmConfig()
algorithms = st.builds(
    AlgorithmConfig,
    loss=st.sampled_from(ALGORITHM_CHOICES["algorithm.loss"]),
    dual_clip=st.sampled_from([None, 2.0]),
    proximal=st.sampled_from(["recompute", "interpolate"]),
    correction=st.sampled_from(ALGORITHM_CHOICES["algorithm.correction"]),
    correction_lower=st.sampled_from([0.0, 0.7]),
    correction_upper=st.sampled_from([1.2, 2.0]),
    correction_lag_decay=st.sampled_from([1.0, 0.9]),
    correction_veto=st.sampled_from([0.0, 0.2]),
    behaviour_coef=st.sampled_from([0.0, 0.3]),
    kl_coef=st.sampled_from([0.0, 0.2]),
    kl_estimator=st.sampled_from(["k1", "k2", "k3"]),
    kl_unbiased=st.booleans(),
    entropy_coef=st.sampled_from([0.0, 0.1]),
)


def clipped_term(ratio: float, advantage: float, algorithm: AlgorithmConfig) -> tuple[float, float]:
    """Value of PPO's surrogate and its derivative by the log of the ratio."""
    low, high = 1 - algorithm.clip_lower, 1 + algorithm.clip_upper
    value, slope = -ratio * advantage, -ratio * advantage
    if (advantage > 0 and ratio > high) or (advantage < 0 and ratio < low):
        value, slope = -(high if ratio > high else low) * advantage, 0.0
    if algorithm.dual_clip and advantage < 0 and ratio > algorithm.dual_clip:
        value, slope = -algorithm.dual_clip * advantage, 0.0
    return value, slope


def policy_terms(sequence: Sequence, proximal: list[float], algorithm: AlgorithmConfig) -> list[tuple[float, float]]:
    """(value, derivative by the token's own log π) of each token; gspo's is by the mean of its log ratios."""
    advantage, terms = sequence.advantage, []
    ratios = [math.exp(p - mu) for p, mu in zip(sequence.logprobs, sequence.behaviour, strict=True)]
    for t, (logprob, mu, ratio) in enumerate(zip(sequence.logprobs, sequence.behaviour, ratios, strict=True)):
        if algorithm.loss == "ppo_clip":
            terms.append(clipped_term(ratio, advantage, algorithm))
        elif algorithm.loss == "decoupled_ppo":
            terms.append(clipped_term(math.exp(logprob - proximal[t]), advantage, algorithm))
        elif algorithm.loss == "gspo":
            product = math.prod(ratios[i] for i in sequence.trained)
            mean = product ** (1 / max(1, len(sequence.trained)))
            terms.append(clipped_term(mean, advantage, replace(algorithm, dual_clip=None)))
        elif algorithm.loss == "cispo":
            held = min(max(ratio, 1 - algorithm.clip_lower), 1 + algorithm.clip_upper)
            terms.append((-held * advantage * logprob, -held * advantage))
        elif algorithm.loss == "dppo_tv":
            moved = math.exp(logprob) - math.exp(mu)
            dropped = moved > algorithm.clip_upper if advantage > 0 else moved < -algorithm.clip_lower
            terms.append((0.0, 0.0) if dropped else (-ratio * advantage, -ratio * advantage))
        else:
            terms.append((-advantage * logprob, -advantage))
    return terms


def factors(sequence: Sequence, proximal: list[float], algorithm: AlgorithmConfig) -> list[float]:
    if algorithm.loss == "decoupled_ppo":
        return [weight for weight, _ in correction_loop(replace(sequence, logprobs=proximal), algorithm)]
    return [pair[0 if algorithm.loss == "reinforce" else 1] for pair in correction_loop(sequence, algorithm)]


def kl_term(logprob: float, mu: float, reference: float, algorithm: AlgorithmConfig) -> tuple[float, float]:
    x = logprob - reference
    value, slope = {
        "k1": (x, 1.0),
        "k2": (x * x / 2, x),
        "k3": (math.exp(-x) - 1 + x, 1 - math.exp(-x)),
    }[algorithm.kl_estimator]
    ratio = math.exp(logprob - mu)
    return (ratio * value, ratio * x) if algorithm.kl_unbiased else (value, slope)


def loop(data: Ragged, algorithm: AlgorithmConfig) -> tuple[float, list[float], list[float]]:
    """Total loss, its gradient by log π of each token, and by each entropy."""
    total, by_logprob, by_entropy = 0.0, [], []
    for sequence in data.sequences:
        proximal = sequence.proximal
        if algorithm.proximal == "interpolate":
            pairs = zip(sequence.logprobs, sequence.behaviour, sequence.lags, strict=True)
            proximal = [mu + lag / (lag + 1) * (p - mu) for p, mu, lag in pairs]
        terms, factor = policy_terms(sequence, proximal, algorithm), factors(sequence, proximal, algorithm)
        shared = sum(w * f * slope for w, f, (_, slope) in zip(sequence.weights, factor, terms, strict=True))
        for t, weight in enumerate(sequence.weights):
            logprob, mu = sequence.logprobs[t], sequence.behaviour[t]
            kl, kl_slope = kl_term(logprob, mu, sequence.reference[t], algorithm)
            total += weight * (factor[t] * terms[t][0] + algorithm.behaviour_coef * (logprob - mu) ** 2)
            total += weight * (algorithm.kl_coef * kl - algorithm.entropy_coef * sequence.entropy[t])
            slope = weight * factor[t] * terms[t][1]
            if algorithm.loss == "gspo":
                slope = shared / len(sequence.trained) if weight > 0 else 0.0
            slope += weight * (2 * algorithm.behaviour_coef * (logprob - mu) + algorithm.kl_coef * kl_slope)
            by_logprob.append(slope)
            by_entropy.append(-weight * algorithm.entropy_coef)
    return total, by_logprob, by_entropy


def evaluate(data: Ragged, algorithm: AlgorithmConfig) -> tuple[Objective, torch.Tensor, torch.Tensor]:
    logprobs, entropy = data.packed("logprobs").requires_grad_(), data.packed("entropy").requires_grad_()
    result = objective(
        logprobs,
        entropy,
        data.actions(),
        algorithm,
        reference_logprobs=data.packed("reference") if algorithm.kl_coef else None,
        proximal_logprobs=data.packed("proximal"),
    )
    gradients = torch.autograd.grad(result.losses["loss/total"], (logprobs, entropy), allow_unused=True)
    return result, gradients[0], torch.zeros_like(entropy) if gradients[1] is None else gradients[1]


@given(ragged, algorithms)
def test_value_and_gradient_equal_a_loop_over_sequences(data: Ragged, algorithm: AlgorithmConfig) -> None:
    result, by_logprob, by_entropy = evaluate(data, algorithm)
    total, expected_by_logprob, expected_by_entropy = loop(data, algorithm)
    assert result.losses["loss/total"].item() == pytest.approx(total, rel=1e-6, abs=1e-6)
    torch.testing.assert_close(by_logprob.tolist(), expected_by_logprob, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(by_entropy.tolist(), expected_by_entropy, rtol=1e-6, atol=1e-6)


@given(ragged, algorithms, st.integers(1, 3), st.randoms())
def test_any_split_and_order_of_the_sequences_gives_the_same_sum_and_gradient(
    data: Ragged, algorithm: AlgorithmConfig, num_parts: int, random: object
) -> None:
    whole, gradient, _ = evaluate(data, algorithm)
    order = random.sample(range(len(data.sequences)), len(data.sequences))  # type: ignore[attr-defined]
    total, gradients = 0.0, {}
    for part in range(num_parts):
        if chosen := order[part::num_parts]:
            result, by_logprob, _ = evaluate(Ragged([data.sequences[i] for i in chosen]), algorithm)
            total += result.losses["loss/total"].item()
            sizes = [len(data.sequences[i].lags) for i in chosen]
            gradients |= dict(zip(chosen, by_logprob.split(sizes), strict=True))
    assert total == pytest.approx(whole.losses["loss/total"].item(), rel=1e-9, abs=1e-12)
    torch.testing.assert_close(torch.cat([gradients[i] for i in range(len(order))]), gradient)


@pytest.mark.parametrize("loss", ALGORITHM_CHOICES["algorithm.loss"])
@given(data=ragged, algorithm=algorithms)
def test_on_policy_every_loss_and_correction_has_the_gradient_of_reinforce(
    loss: str, data: Ragged, algorithm: AlgorithmConfig
) -> None:
    algorithm = replace(algorithm, loss=loss, kl_coef=0.0, behaviour_coef=0.0, entropy_coef=0.0)
    same = Ragged(
        [
            replace(
                sequence,
                behaviour=sequence.logprobs,
                proximal=sequence.logprobs,
                weights=[0.5 * (weight > 0) for weight in sequence.weights],
            )
            for sequence in data.sequences
        ]
    )
    result, gradient, _ = evaluate(same, algorithm)
    torch.testing.assert_close(gradient, -same.packed("weights") * same.advantages)
    assert result.stats["ratio"].tolist() == [1.0] * len(gradient)
    for name in ("kl_behaviour", "kl_behaviour_k1", "clip_fraction", "masked_fraction", "truncated_fraction"):
        assert result.stats[name].tolist() == [0.0] * len(gradient)


@given(ragged)
def test_a_mean_correction_divides_the_policy_loss_alone(data: Ragged) -> None:
    algorithm = replace(ORDINARY, entropy_coef=0.1)
    arguments = (data.packed("logprobs"), data.packed("entropy"), data.actions(), algorithm)
    plain, halved = objective(*arguments).losses, objective(*arguments, mean_correction=2.0).losses
    assert halved["loss/policy"].item() == pytest.approx(plain["loss/policy"].item() / 2)
    bonus = plain["loss/policy"] - plain["loss/total"]
    torch.testing.assert_close(halved["loss/policy"] - halved["loss/total"], bonus)
