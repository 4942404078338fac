"""The objective, value and gradient, against a loop over sequences in plain Python for every loss and correction."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from asyncrl.algorithms.kl import K3_TANGENT_FROM
from asyncrl.config.algorithm import AlgorithmConfig
from asyncrl.config.checks.algorithm import ALGORITHM_CHOICES
from asyncrl.learn.update.objective import Objective, correction_of, objective
from tests.algorithms.test_correction import REJECTIONS
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
    rejection=st.sampled_from([*REJECTIONS]),
    sapo_temperature_negative=st.sampled_from([1.05, 3.0]),
    rejection_bound=st.just(0.1),
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
        elif algorithm.loss == "sapo":
            temperature, gate = sapo_gate(ratio, advantage, algorithm)
            terms.append((-advantage * 4 / temperature * gate, -advantage * 4 * ratio * gate * (1 - gate)))
        elif algorithm.loss == "dppo_tv":
            moved = math.exp(logprob) - math.exp(mu)
            dropped = moved > algorithm.clip_upper if advantage > 0 else moved < -algorithm.clip_lower
            terms.append((0.0, 0.0) if dropped else (-ratio * advantage, -ratio * advantage))
        else:
            terms.append((-advantage * logprob, -advantage))
    return terms


def sapo_gate(ratio: float, advantage: float, algorithm: AlgorithmConfig) -> tuple[float, float]:
    temperature = algorithm.sapo_temperature_positive if advantage > 0 else algorithm.sapo_temperature_negative
    return temperature, 1 / (1 + math.exp(-temperature * (ratio - 1)))


def factors(sequence: Sequence, proximal: list[float], algorithm: AlgorithmConfig) -> list[float]:
    """What each token's loss is multiplied by."""
    if algorithm.loss == "decoupled_ppo":
        return [scale for _, scale in correction_loop(replace(sequence, logprobs=proximal), algorithm)]
    if algorithm.loss == "reinforce":
        return [scale for _, scale in correction_loop(sequence, algorithm)]
    carried = [math.exp(p - mu) for p, mu in zip(sequence.logprobs, sequence.behaviour, strict=True)]
    if algorithm.loss == "gspo":
        carried = [math.prod(carried[t] for t in sequence.trained) ** (1 / max(1, len(sequence.trained)))] * len(
            carried
        )
    if algorithm.loss == "cispo":
        carried = [min(max(ratio, 1 - algorithm.clip_lower), 1 + algorithm.clip_upper) for ratio in carried]
    if algorithm.loss == "sapo":
        gates = [sapo_gate(ratio, sequence.advantage, algorithm)[1] for ratio in carried]
        carried = [4 * ratio * gate * (1 - gate) for ratio, gate in zip(carried, gates, strict=True)]
    return [scale for _, scale in correction_loop(sequence, algorithm, carried)]


K3_SLOPE = math.exp(K3_TANGENT_FROM) - 1


def k3_tangent(log_ratio: float) -> float:
    return K3_SLOPE - K3_TANGENT_FROM + K3_SLOPE * (log_ratio - K3_TANGENT_FROM)


def kl_term(logprob: float, mu: float, reference: float, algorithm: AlgorithmConfig) -> tuple[float, float]:
    x = logprob - reference
    value, slope = {
        "k1": (x, 1.0),
        "k2": (x * x / 2, x),
        "k3": (math.exp(-x) - 1 + x, 1 - math.exp(-x)) if -x < K3_TANGENT_FROM else (k3_tangent(-x), -K3_SLOPE),
    }[algorithm.kl_estimator]
    ratio = math.exp(logprob - mu)
    return (ratio * value, ratio * x) if algorithm.kl_unbiased else (value, slope)


def loop(data: Ragged, algorithm: AlgorithmConfig, progress: float) -> tuple[float, list[float], list[float]]:
    """Total loss, its gradient by log π of each token, and by each entropy."""
    total, by_logprob, by_entropy = 0.0, [], []
    for sequence in data.sequences:
        proximal = sequence.proximal
        if algorithm.proximal == "interpolate":
            pairs = zip(sequence.logprobs, sequence.behaviour, strict=True)
            shares = [lag / (lag + progress) if progress else 1.0 for lag in sequence.lags]
            proximal = [mu + share * (p - mu) for (p, mu), share in zip(pairs, shares, strict=True)]
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


def evaluate(
    data: Ragged, algorithm: AlgorithmConfig, progress: float = 0.0
) -> tuple[Objective, torch.Tensor, torch.Tensor]:
    logprobs, entropy = data.packed("logprobs").requires_grad_(), data.packed("entropy").requires_grad_()
    result = objective(
        logprobs,
        entropy,
        data.actions(),
        algorithm,
        reference_logprobs=data.packed("reference") if algorithm.kl_coef else None,
        proximal_logprobs=data.packed("proximal"),
        progress=progress,
    )
    gradients = torch.autograd.grad(result.losses["loss/total"], (logprobs, entropy), allow_unused=True)
    return result, gradients[0], torch.zeros_like(entropy) if gradients[1] is None else gradients[1]


@given(ragged, algorithms, st.sampled_from([0.0, 0.5]))
def test_value_and_gradient_equal_a_loop_over_sequences(
    data: Ragged, algorithm: AlgorithmConfig, progress: float
) -> None:
    result, by_logprob, by_entropy = evaluate(data, algorithm, progress)
    total, expected_by_logprob, expected_by_entropy = loop(data, algorithm, progress)
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


def sum_of_gradients(data: Ragged, algorithm: AlgorithmConfig) -> float:
    """Σ|∂loss/∂log π| of the normalised correction, in the step's first update."""
    logprobs, actions = data.packed("logprobs").requires_grad_(), data.actions()
    weights = correction_of(logprobs, None, actions, algorithm, 0.0).weights
    mean = weights[actions.mask].mean().item()
    result = objective(logprobs, data.packed("entropy"), actions, algorithm, mean_correction=mean)
    (gradient,) = torch.autograd.grad(result.losses["loss/total"], logprobs)
    return gradient.abs().sum().item()


def equally_weighted(data: Ragged) -> Ragged:
    """Every trained token with the same share, and advantages of size 1."""
    num_trained = sum(len(sequence.trained) for sequence in data.sequences)
    return Ragged(
        [
            replace(
                sequence,
                weights=[(weight > 0) / max(1, num_trained) for weight in sequence.weights],
                advantage=1.0 if sequence.advantage > 0 else -1.0,
            )
            for sequence in data.sequences
        ]
    )


@given(ragged, algorithms)
def test_a_normalised_correction_spends_a_weight_of_one_whatever_loss_and_correction(
    data: Ragged, algorithm: AlgorithmConfig
) -> None:
    algorithm = replace(algorithm, behaviour_coef=0.0, kl_coef=0.0, entropy_coef=0.0)
    data = equally_weighted(data)
    weights = correction_of(data.packed("logprobs"), None, data.actions(), algorithm, 0.0).weights
    assume(weights[data.actions().mask].sum() > 0)
    assert sum_of_gradients(data, algorithm) <= 1 + 1e-6  # less where the loss's own clip takes tokens out


@pytest.mark.parametrize("loss", ["dppo_tv", "ppo_clip", "gspo", "reinforce"])
@pytest.mark.parametrize("correction", ["sequence_truncate", "sequence_mask", "geometric_truncate"])
def test_a_normalised_sequence_correction_of_long_sequences_has_a_gradient_of_about_one(
    loss: str, correction: str
) -> None:
    rng = np.random.default_rng(0)

    def sequence() -> Sequence:
        behaviour = rng.uniform(-3, -1, 1000)
        logprobs, zeros = behaviour + rng.normal(-0.01, 0.05, 1000), [0.0] * 1000
        weights, lags = [1 / 8000] * 1000, [0] * 1000
        return Sequence(logprobs.tolist(), behaviour.tolist(), zeros, zeros, zeros, lags, weights, 1.0)

    data = Ragged([sequence() for _ in range(8)])
    algorithm = AlgorithmConfig(loss=loss, correction=correction)
    assert sum_of_gradients(data, algorithm) == pytest.approx(1.0, abs=0.02)
