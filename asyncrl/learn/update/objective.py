"""The loss of one micro-batch, with s_t the correction's scale (see `algorithms.correction`) and ρ = π_θ/μ:

    Σ_t weight_t · (s_t · policy_t + behaviour_coef · (log ρ_t)² + kl_coef · KL_t − entropy_coef · H_t)

Legend: T action tokens.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from asyncrl.algorithms.correction import Correction, correct
from asyncrl.algorithms.kl import KL_ESTIMATORS, unbiased
from asyncrl.algorithms.loss import carried_ratio, policy_loss
from asyncrl.algorithms.proximal import interpolated
from asyncrl.algorithms.ratio import clamped_log_ratio
from asyncrl.algorithms.rejection import rejected
from asyncrl.algorithms.stats import policy_stats
from asyncrl.config.algorithm import AlgorithmConfig
from asyncrl.learn.update.mini_batches import ActionTokens


class Objective(NamedTuple):
    """What `objective` answers."""

    losses: dict[str, Tensor]
    """Scalars: `loss/total` (to be differentiated), `loss/policy`, and with a reference `loss/kl` (before kl_coef)."""
    stats: dict[str, Tensor]
    """[T] values without gradient, by `policy_stats`, and `entropy`."""


def objective(
    logprobs: Tensor,
    entropy: Tensor,
    actions: ActionTokens,
    algorithm: AlgorithmConfig,
    *,
    reference_logprobs: Tensor | None = None,
    proximal_logprobs: Tensor | None = None,
    progress: float = 0.0,
    largest_square: float = math.inf,
    mean_correction: float = 1.0,
) -> Objective:
    """This micro-batch's share of the mini-batch's loss, and of its parts.

    Args:
        logprobs: [T] log π_θ, carries the gradient.
        entropy: [T] nats, carries the gradient.
        actions: [T], whole sequences.
        algorithm: which loss, correction and coefficients.
        reference_logprobs: [T] log of the reference; None leaves the KL out.
        proximal_logprobs: [T] log π_prox of decoupled_ppo with proximal=recompute; None = π_θ itself.
        progress: share of the step's updates made before this one, for proximal=interpolate.
        largest_square: of (log ρ)² that rejection=second_moment keeps; global.
        mean_correction: divides the corrections; global, see correction_normalise.
    """
    log_ratio, correction = _log_ratio_and_correction(
        logprobs, proximal_logprobs, actions, algorithm, progress, largest_square
    )
    behaviour = actions.behaviour_logprobs
    policy = policy_loss(
        logprobs, behaviour, log_ratio, actions.advantages, actions.mask, actions.segment_ids, algorithm
    )
    total = (actions.weights * correction.scale * policy.losses).sum() / mean_correction
    losses = {"loss/policy": total}
    behaviour_log_ratio = clamped_log_ratio(logprobs, behaviour)
    if algorithm.behaviour_coef:
        total = total + algorithm.behaviour_coef * (actions.weights * behaviour_log_ratio.square()).sum()
    if reference_logprobs is not None:
        kl = KL_ESTIMATORS[algorithm.kl_estimator](logprobs, reference_logprobs)
        if algorithm.kl_unbiased:
            kl = unbiased(kl, logprobs, reference_logprobs, behaviour_log_ratio)
        losses["loss/kl"] = (actions.weights * kl).sum()
        total = total + algorithm.kl_coef * losses["loss/kl"]
    if algorithm.entropy_coef:
        total = total - algorithm.entropy_coef * (actions.weights * entropy).sum()
    losses["loss/total"] = total
    return Objective(losses, {"entropy": entropy.detach(), **policy_stats(logprobs, behaviour, policy, correction)})


def correction_of(
    logprobs: Tensor,
    proximal_logprobs: Tensor | None,
    actions: ActionTokens,
    algorithm: AlgorithmConfig,
    progress: float,
    largest_square: float = math.inf,
) -> Correction:
    """What `objective` corrects by. Arguments as there."""
    return _log_ratio_and_correction(logprobs, proximal_logprobs, actions, algorithm, progress, largest_square)[1]


def log_ratios(
    logprobs: Tensor,
    proximal_logprobs: Tensor | None,
    actions: ActionTokens,
    algorithm: AlgorithmConfig,
    progress: float,
) -> tuple[Tensor, Tensor]:
    """[T] log of the ratio that the loss clips, which carries the gradient, and of the one to be corrected."""
    behaviour = actions.behaviour_logprobs
    if algorithm.loss != "decoupled_ppo":
        log_ratio = clamped_log_ratio(logprobs, behaviour)
        return log_ratio, log_ratio
    if algorithm.proximal == "interpolate":
        proximal = interpolated(logprobs, behaviour, actions.lags, progress)
    else:
        proximal = logprobs.detach() if proximal_logprobs is None else proximal_logprobs
    return clamped_log_ratio(logprobs, proximal), clamped_log_ratio(proximal, behaviour)


def _log_ratio_and_correction(
    logprobs: Tensor,
    proximal_logprobs: Tensor | None,
    actions: ActionTokens,
    algorithm: AlgorithmConfig,
    progress: float,
    largest_square: float,
) -> tuple[Tensor, Correction]:
    """[T] log of the ratio that the loss clips, which carries the gradient, and the correction."""
    mask, segment_ids, advantages = actions.mask, actions.segment_ids, actions.advantages
    log_ratio, to_correct = log_ratios(logprobs, proximal_logprobs, actions, algorithm, progress)
    carried = carried_ratio(log_ratio, advantages, mask, segment_ids, algorithm)
    dropped = rejected(to_correct, advantages, mask, segment_ids, algorithm, largest_square)
    return log_ratio, correct(to_correct, carried, dropped, mask, segment_ids, actions.lags, algorithm)
