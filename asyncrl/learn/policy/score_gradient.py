"""The gradient of log-probabilities and entropies by the scores that they are computed from, with p the softmax:

    ∂logprob/∂y = onehot(target) − p        ∂entropy/∂y = −p·(log p + entropy)

Legend: scores lie as [v, t], v of the tokens that could be sampled by t tokens that were.
"""

from __future__ import annotations

import torch
from torch import Tensor


def by_scores(log_p: Tensor, entropies: Tensor, by_logprob: Tensor, by_entropy: Tensor | None) -> Tensor:
    """[v, t] the gradient by each score, without the target's onehot.

    Args:
        log_p: [v, t]; overwritten.
        entropies: [t]
        by_logprob: [t]
        by_entropy: [t]; None = of the entropies nothing is asked.
    """
    if by_entropy is None:
        return log_p.exp_().mul_(-by_logprob)
    p = log_p.exp()
    return p.mul_(log_p.add_(entropies).mul_(by_entropy).add_(by_logprob).neg_())


def times(scores: Tensor, slope: Tensor | float) -> Tensor:
    """In place."""
    return scores.mul_(slope) if isinstance(slope, Tensor) or slope != 1 else scores


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, in float32 whatever the type of the factors."""
    if left.dtype == torch.float32:
        total.addmm_(left, right)
    else:
        total += left @ right
