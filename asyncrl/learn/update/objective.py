"""The loss of one micro-batch, with w_t the importance correction and ρ = π_θ/μ:

    Σ_t weight_t · (w_t · policy_t + behaviour_coef · (log ρ_t)² + kl_coef · KL_t − entropy_coef · H_t)

w_t is the correction's whole weight for a loss without a ratio to μ of its own, else its scale alone (see
`algorithms.correction`). Legend: T action tokens.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from asyncrl.algorithms.correction import Correction, correct
from asyncrl.algorithms.kl import KL_ESTIMATORS, unbiased
from asyncrl.algorithms.loss import policy_loss
from asyncrl.algorithms.proximal import interpolated
from asyncrl.algorithms.ratio import clamped_log_ratio
from asyncrl.algorithms.stats import policy_stats
from asyncrl.config.algorithm import AlgorithmConfig
from asyncrl.learn.update.mini_batches import ActionTokens

LOSSES_WITHOUT_BEHAVIOUR_RATIO = ("decoupled_ppo", "reinforce")
"""Their ratio, if any, is not to μ, so that the correction has to bring the whole importance weight."""


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
        mean_correction: divides the corrections; global, see correction_normalise.
    """
    log_ratio, correction = _log_ratio_and_correction(logprobs, proximal_logprobs, actions, algorithm)
    behaviour = actions.behaviour_logprobs
    policy = policy_loss(
        logprobs, behaviour, log_ratio, actions.advantages, actions.mask, actions.segment_ids, algorithm
    )
    factor = correction.weights if algorithm.loss in LOSSES_WITHOUT_BEHAVIOUR_RATIO else correction.scale
    total = (actions.weights * factor * policy.losses).sum() / mean_correction
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
    logprobs: Tensor, proximal_logprobs: Tensor | None, actions: ActionTokens, algorithm: AlgorithmConfig
) -> Correction:
    """The correction that `objective` applies. Arguments as there."""
    return _log_ratio_and_correction(logprobs, proximal_logprobs, actions, algorithm)[1]


def _log_ratio_and_correction(
    logprobs: Tensor, proximal_logprobs: Tensor | None, actions: ActionTokens, algorithm: AlgorithmConfig
) -> tuple[Tensor, Correction]:
    """[T] log of the ratio that the loss clips, which carries the gradient, and the correction."""
    behaviour = actions.behaviour_logprobs
    if algorithm.loss != "decoupled_ppo":
        log_ratio = to_correct = clamped_log_ratio(logprobs, behaviour)
    else:
        if algorithm.proximal == "interpolate":
            proximal = interpolated(logprobs, behaviour, actions.lags)
        else:
            proximal = logprobs.detach() if proximal_logprobs is None else proximal_logprobs
        log_ratio, to_correct = clamped_log_ratio(logprobs, proximal), clamped_log_ratio(proximal, behaviour)
    return log_ratio, correct(to_correct, actions.mask, actions.segment_ids, actions.lags, algorithm)
