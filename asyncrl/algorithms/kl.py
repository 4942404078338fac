"""Per-token estimators of a KL divergence (J. Schulman, joschu.net/blog/kl-approx.html). Legend: T tokens."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from asyncrl.algorithms.ratio import clamped_log_ratio, truncated_ratio

K3_TANGENT_FROM = 2.611
"""log q/p at which k3 is 10, the value where verl cuts it."""


def k1(sampled: Tensor, other: Tensor) -> Tensor:
    """log p − log q for tokens sampled from p: unbiased for KL(p ‖ q), may be negative.

    In a loss its plain gradient, ∇log p, has mean 0 and so does not pull p towards q: use `unbiased`.

    Args:
        sampled: [T] log p, of the distribution that sampled the tokens.
        other: [T] log q.

    Returns:
        [T]
    """
    return -clamped_log_ratio(other, sampled)


def k2(sampled: Tensor, other: Tensor) -> Tensor:
    """½ (log p − log q)² for tokens sampled from p: biased, never negative; its plain gradient is right on policy.

    Arguments and result as in `k1`.
    """
    return clamped_log_ratio(other, sampled).square() / 2


def k3(sampled: Tensor, other: Tensor) -> Tensor:
    """q/p − 1 − log(q/p) for tokens sampled from p: unbiased for KL(p ‖ q), never negative, of low variance.

    With p = π_θ and q = the reference it is the penalty of GRPO (arXiv 2402.03300, eq. 4). There the tokens were in
    fact sampled by μ, and as in verl and TRL no importance weight makes up for it unless `unbiased` does.

    Arguments and result as in `k1`.
    """
    log_ratio = clamped_log_ratio(other, sampled)
    return log_ratio.expm1() - log_ratio


def bounded_k3(sampled: Tensor, other: Tensor) -> Tensor:
    """k3 up to K3_TANGENT_FROM, beyond it its tangent there, whose slope is −12.6 by log p.

    At log q/p = 15 the slope of KL(p ‖ q) is −15, k3's is −3.3e6, and one such token makes the update. verl's cut has a
    slope of 0: a token that has left the reference farthest would not be pulled back at all. Arguments and result as in
    `k1`.
    """
    log_ratio = clamped_log_ratio(other, sampled)
    inside = log_ratio.clamp(max=K3_TANGENT_FROM)
    return inside.expm1() - inside + math.expm1(K3_TANGENT_FROM) * (log_ratio - inside)


KL_ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": bounded_k3}
"""`algorithm.kl_estimator` → function."""


def unbiased(estimate: Tensor, logprobs: Tensor, reference: Tensor, log_ratio: Tensor) -> Tensor:
    """ρ · estimate, with the gradient of KL(π_θ ‖ reference) for tokens from μ: ρ · log(π_θ/reference) · ∇log π_θ.

    For k3 it is what differentiating ρ·k3 gives (DeepSeek-V3.2, arXiv 2512.02556); ρ is truncated at `MAX_RATIO`. On
    policy, ρ = 1, it is the straight-through form that verl calls k1+ and k3+: the value of one estimator, the gradient
    of k2.

    Args:
        estimate: [T] of k1, k2 or k3.
        logprobs: [T] log π_θ, carries the gradient.
        reference: [T]
        log_ratio: [T] log π_θ/μ, clamped.

    Returns:
        [T]
    """
    ratio = truncated_ratio(log_ratio.detach())
    gradient = ratio * k2(logprobs, reference)
    return gradient - gradient.detach() + ratio * estimate.detach()
