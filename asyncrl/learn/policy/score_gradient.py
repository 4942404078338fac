"""The gradient of log-probabilities and entropies by the scores that they are computed from, with p the softmax:

    ∂logprob/∂y = onehot(target) − p        ∂entropy/∂y = −p·(log p + entropy)

Legend: scores lie as [v, t], v of the tokens that could be sampled by t tokens that were.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class OfTokens(NamedTuple):
    """What a backward pass knows of t tokens, [t] each."""

    normalisers: Tensor
    entropies: Tensor
    by_logprob: Tensor
    by_entropy: Tensor | None
    """None = of the entropies nothing is asked."""

    def at(self, tokens: slice) -> OfTokens:
        """Some of them."""
        return OfTokens(*(None if values is None else values[tokens] for values in self))  # type: ignore[arg-type]


def keep_for_backward(ctx: Any, *tensors: Tensor | None) -> None:
    """In this order they are `ctx.saved_tensors`."""
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)  # the gradient of an output that is not used is None


def of_tokens(normalisers: Tensor, entropies: Tensor, gradients: tuple[Tensor | None, ...]) -> OfTokens:
    """`gradients` are those by logprobs and by entropies."""
    by_logprob, by_entropy = gradients
    return OfTokens(
        normalisers, entropies, torch.zeros_like(normalisers) if by_logprob is None else by_logprob, by_entropy
    )


def by_logits(log_p: Tensor, slope: Tensor | float, known: OfTokens, rows: Tensor, is_here: Tensor | bool) -> Tensor:
    """[v, t] the gradient by each logit.

    Args:
        log_p: [v, t]; overwritten.
        slope: of each score by its logit, [v, t] or the same for all.
        rows: [t] that of each target.
        is_here: [t] whether the target is among these v.
    """
    if known.by_entropy is None:
        by_y = log_p.exp_().mul_(-known.by_logprob)
    else:
        p = log_p.exp()
        by_y = p.mul_(log_p.add_(known.entropies).mul_(known.by_entropy).add_(known.by_logprob).neg_())
    by_y.scatter_add_(0, rows[None], (known.by_logprob * is_here)[None])
    return by_y.mul_(slope) if isinstance(slope, Tensor) or slope != 1 else by_y


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, in float32 whatever the type of the factors."""
    if left.dtype == torch.float32:
        total.addmm_(left, right)
    else:
        total += left @ right
