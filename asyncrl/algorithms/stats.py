"""What is logged of each trained token. Legend: T tokens."""

from __future__ import annotations

from torch import Tensor

from asyncrl.algorithms import kl
from asyncrl.algorithms.correction import Correction
from asyncrl.algorithms.loss import PolicyLoss
from asyncrl.algorithms.ratio import clamped_log_ratio


def policy_stats(
    logprobs: Tensor, behaviour_logprobs: Tensor, policy: PolicyLoss, correction: Correction
) -> dict[str, Tensor]:
    """Statistic → [T] float values whose mean over trained tokens is the metric; none carries a gradient.

    `ratio` is ρ = π_θ/μ whatever the loss clips. `kl_behaviour` is KL(μ ‖ π_θ), by k3 and by k1: the tokens were
    sampled from μ, so both are unbiased.

    Args:
        logprobs: [T] log π_θ.
        behaviour_logprobs: [T] log μ.
        policy: gives the clipped tokens.
        correction: gives the masked and the truncated tokens.
    """
    logprobs = logprobs.detach()
    return {
        "ratio": clamped_log_ratio(logprobs, behaviour_logprobs).exp(),
        "kl_behaviour": kl.k3(behaviour_logprobs, logprobs),
        "kl_behaviour_k1": kl.k1(behaviour_logprobs, logprobs),
        "clip_fraction": policy.clipped.float(),
        "masked_fraction": correction.masked.float(),
        "truncated_fraction": correction.truncated.float(),
    }
