"""Policy losses, one value a token, with the tokens whose gradient the clip removes or bounds. Legend: T tokens.

Departures from the papers: except in decoupled_ppo the ratio is ρ = π_θ/μ, where μ is the policy that sampled the
token, several versions ago, not the policy before this step. And no token weighs more than `ratio.MAX_RATIO`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from asyncrl.algorithms.ratio import truncated_ratio
from asyncrl.algorithms.segments import masked_segment_mean
from asyncrl.config.algorithm import AlgorithmConfig


class PolicyLoss(NamedTuple):
    """What a loss function answers."""

    losses: Tensor
    """[T], carries the gradient."""
    clipped: Tensor
    """[T] bool: the clip removed the token's gradient (cispo: bounded its weight)."""


def ppo_clip(
    log_ratio: Tensor, advantages: Tensor, clip_lower: float, clip_upper: float, dual_clip: float | None = None
) -> PolicyLoss:
    """−min(ρA, clip(ρ, 1 − clip_lower, 1 + clip_upper)·A) (PPO, arXiv 1707.06347, eq. 7).

    The two bounds differ as in DAPO's clip-higher (arXiv 2503.14476, eq. 10). With dual_clip c the loss of a token with
    A < 0 is at most c·|A| (arXiv 1912.09729, eq. 5), so that it has no gradient beyond ρ = c.

    Args:
        log_ratio: [T] log ρ, clamped; carries the gradient.
        advantages: [T]
        clip_lower: in [0, 1].
        clip_upper: ≥ 0.
        dual_clip: above 1, or None.
    """
    ratio = truncated_ratio(log_ratio)
    held = ratio.clamp(1.0 - clip_lower, 1.0 + clip_upper)
    losses = -torch.minimum(ratio * advantages, held * advantages)
    too_high = (advantages > 0) & (ratio > 1.0 + clip_upper)
    too_low = (advantages < 0) & (ratio < 1.0 - clip_lower)
    clipped = too_high | too_low
    if dual_clip is not None:
        losses = torch.where(advantages < 0, torch.minimum(losses, -dual_clip * advantages), losses)
        clipped = clipped | ((advantages < 0) & (ratio > dual_clip))
    return PolicyLoss(losses, clipped.detach())


def gspo(
    log_ratio: Tensor, advantages: Tensor, mask: Tensor, segment_ids: Tensor, clip_lower: float, clip_upper: float
) -> PolicyLoss:
    """PPO's clip on the sequence's ratio s = (∏ρ)^(1/n) (GSPO, arXiv 2507.18071, eqs. 5 and 7).

    Each token has its sequence's value, so with aggregation=sequence_mean the sum is the paper's.

    Args:
        log_ratio: [T] log ρ, clamped, of whole sequences; carries the gradient.
        advantages: [T], equal within a sequence.
        mask: [T] bool, the trained tokens: n counts those.
        segment_ids: [T] int64, the sequence of each token.
        clip_lower: in [0, 1], about 3e-4.
        clip_upper: ≥ 0, about 4e-4.
    """
    return ppo_clip(masked_segment_mean(log_ratio, mask, segment_ids), advantages, clip_lower, clip_upper)


def cispo(logprobs: Tensor, log_ratio: Tensor, advantages: Tensor, clip_lower: float, clip_upper: float) -> PolicyLoss:
    """−sg(clip(ρ, 1 − clip_lower, 1 + clip_upper))·A·log π_θ (CISPO; MiniMax-M1, arXiv 2506.13585).

    No token loses its gradient; a clipped one has it with a bounded weight. Arguments as in `ppo_clip`, and
    logprobs [T] log π_θ, which alone carries the gradient.
    """
    ratio = log_ratio.detach().exp()
    held = ratio.clamp(1.0 - clip_lower, 1.0 + clip_upper)
    return PolicyLoss(-held * advantages * logprobs, held != ratio)


def sapo(log_ratio: Tensor, advantages: Tensor, positive: float, negative: float) -> PolicyLoss:
    """−A·(4/τ)·σ(τ·(ρ − 1)) with τ = `positive` where A > 0, else `negative` (SAPO, arXiv 2511.20347, eqs. 5 and 6).

    Its gradient is −A·ρ·4p(1 − p)·∇log π_θ with p = σ(τ·(ρ − 1)): ρ at ρ = 1, and smoothly to 0 on both sides. No token
    is clipped. Arguments as in `ppo_clip`; the temperatures are > 0.
    """
    temperature = torch.where(advantages > 0, positive, negative)
    gate = torch.sigmoid(temperature * log_ratio.expm1()) * 4 / temperature
    return PolicyLoss(-gate * advantages, torch.zeros_like(advantages, dtype=torch.bool))


def dppo_tv(
    logprobs: Tensor, behaviour_logprobs: Tensor, log_ratio: Tensor, advantages: Tensor, lower: float, upper: float
) -> PolicyLoss:
    """−keep·A·ρ, where a token is dropped once |π_θ − μ| is too large in the direction of its advantage.

    A > 0: dropped if π_θ − μ > upper; A ≤ 0: if π_θ − μ < −lower. The difference of probabilities tells of the total
    variation, a ratio does not: a rare token may have a large one and yet move little (DPPO, arXiv 2602.04879).

    Args:
        logprobs: [T] log π_θ.
        behaviour_logprobs: [T] log μ.
        log_ratio: [T] log ρ, clamped; carries the gradient.
        advantages: [T]
        lower: in [0, 1].
        upper: in [0, 1].
    """
    difference = logprobs.detach().exp() - behaviour_logprobs.exp()
    dropped = torch.where(advantages > 0, difference > upper, difference < -lower)
    return PolicyLoss(-(truncated_ratio(log_ratio) * advantages).where(~dropped, 0.0), dropped)


def reinforce(logprobs: Tensor, advantages: Tensor) -> PolicyLoss:
    """−A·log π_θ (Williams 1992); off policy only the correction's weight makes it right.

    Args:
        logprobs: [T] log π_θ, carries the gradient.
        advantages: [T]
    """
    return PolicyLoss(-advantages * logprobs, torch.zeros_like(logprobs, dtype=torch.bool))


def policy_loss(
    logprobs: Tensor,
    behaviour_logprobs: Tensor,
    log_ratio: Tensor,
    advantages: Tensor,
    mask: Tensor,
    segment_ids: Tensor,
    algorithm: AlgorithmConfig,
) -> PolicyLoss:
    """By `algorithm.loss`. All are [T], as in the functions above; decoupled_ppo's log_ratio is log π_θ/π_prox."""
    lower, upper = algorithm.clip_lower, algorithm.clip_upper
    match algorithm.loss:
        case "ppo_clip" | "decoupled_ppo":
            return ppo_clip(log_ratio, advantages, lower, upper, algorithm.dual_clip)
        case "gspo":
            return gspo(log_ratio, advantages, mask, segment_ids, lower, upper)
        case "cispo":
            return cispo(logprobs, log_ratio, advantages, lower, upper)
        case "sapo":
            return sapo(log_ratio, advantages, algorithm.sapo_temperature_positive, algorithm.sapo_temperature_negative)
        case "dppo_tv":
            return dppo_tv(logprobs, behaviour_logprobs, log_ratio, advantages, lower, upper)
        case "reinforce":
            return reinforce(logprobs, advantages)
    raise AssertionError(f"algorithm.loss={algorithm.loss!r} passed the config checks")


def carried_ratio(
    log_ratio: Tensor, advantages: Tensor, mask: Tensor, segment_ids: Tensor, algorithm: AlgorithmConfig
) -> Tensor | None:
    """[T] > 0: the ratio to μ by which the loss itself weighs A·∇log π_θ of a token that its clip lets through.

    None for a loss that carries no ratio to μ: reinforce has none, that of decoupled_ppo is to π_prox. Arguments as in
    `gspo`; the result has no gradient.
    """
    log_ratio = log_ratio.detach()
    match algorithm.loss:
        case "reinforce" | "decoupled_ppo":
            return None
        case "gspo":
            return truncated_ratio(masked_segment_mean(log_ratio, mask, segment_ids))
        case "cispo":
            return log_ratio.exp().clamp(1.0 - algorithm.clip_lower, 1.0 + algorithm.clip_upper)
        case "sapo":
            positive, negative = algorithm.sapo_temperature_positive, algorithm.sapo_temperature_negative
            gate = torch.sigmoid(torch.where(advantages > 0, positive, negative) * log_ratio.expm1())
            return (log_ratio.exp() * 4 * gate * (1 - gate)).clamp(min=torch.finfo(log_ratio.dtype).tiny)
    return truncated_ratio(log_ratio)
