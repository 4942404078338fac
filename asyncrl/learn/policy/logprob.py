"""Log-probabilities and entropies of chosen tokens without ever holding all logits.

Legend: T tokens, H hidden size, V vocabulary size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from asyncrl import devices
from asyncrl.config.logit_transform import LogitTransform
from asyncrl.learn.policy.logit_chunks import BYTES_PER_LOGIT, chunk_bytes


def token_logprobs(
    hidden: Tensor, head: nn.Linear, targets: Tensor, temperature: float, transform: LogitTransform
) -> tuple[Tensor, Tensor]:
    """Log-softmax at the targets and entropy, chunk by chunk; the backward pass recomputes each chunk's logits.

    The logits are divided by the temperature, because the engine reports log μ after that division. Where no gradient
    of the entropies is asked for, none is computed.

    Args:
        hidden: [T, H], the decoder's output at the positions that predict the targets.
        head: the output embedding, [T, H] → [T, V].
        targets: [T] int64.
        temperature: > 0.
        transform: of the logits, before the temperature.

    Returns:
        logprobs [T] and entropy [T] (nats), float32 whatever the compute type.
    """
    outputs: tuple[Tensor, Tensor] = _HeadLogprobs.apply(
        hidden, head.weight, head.bias, targets, temperature, transform
    )
    return outputs


class _HeadLogprobs(torch.autograd.Function):
    """From hidden states to log-probabilities and entropies, with y the logits after transform and temperature:

        logprob = y[target] − logsumexp(y)        ∂logprob/∂y = onehot(target) − p
        entropy = logsumexp(y) − Σ p·y            ∂entropy/∂y = −p·(log p + entropy)

    The head's gradient adds up over the chunks in float32 and is rounded once more, to the type of its weight.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        transform: LogitTransform,
    ) -> tuple[Tensor, Tensor]:
        logprobs, entropies, normalisers = (hidden.new_empty(len(hidden), dtype=torch.float32) for _ in range(3))
        for chunk in _chunks(hidden, weight):
            y = transform(_logits(hidden[chunk], weight, bias)).div_(temperature)
            largest = y.amax(-1, keepdim=True)
            p = (y - largest).exp_()
            total = p.sum(-1)
            normaliser = total.log() + largest.squeeze(-1)
            logprobs[chunk] = y.gather(-1, targets[chunk, None]).squeeze(-1) - normaliser
            entropies[chunk] = normaliser - torch.einsum("tv,tv->t", p, y) / total
            normalisers[chunk] = normaliser
        ctx.save_for_backward(hidden, weight, bias, targets, normalisers, entropies)
        ctx.temperature, ctx.transform = temperature, transform
        ctx.set_materialize_grads(False)  # the gradient of an output that is not used is None
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        by_logprob, by_entropy = gradients
        hidden, weight, bias, targets, normalisers, entropies = ctx.saved_tensors
        if by_logprob is None:
            by_logprob = torch.zeros_like(normalisers)
        by_hidden = torch.empty_like(hidden)
        needs_weight, needs_bias = ctx.needs_input_grad[1:3]  # a frozen head's are not computed
        by_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        by_bias = torch.zeros_like(bias, dtype=torch.float32) if needs_bias else None
        for chunk in _chunks(hidden, weight):
            transformed = ctx.transform(_logits(hidden[chunk], weight, bias))
            slope = ctx.transform.slope(transformed)
            log_p = transformed.div_(ctx.temperature).sub_(normalisers[chunk, None])
            by_y = log_p.exp()
            if by_entropy is None:
                by_y.mul_(-by_logprob[chunk, None])
            else:
                log_p.add_(entropies[chunk, None]).mul_(by_entropy[chunk, None]).add_(by_logprob[chunk, None])
                by_y.mul_(log_p.neg_())
            by_y.scatter_add_(-1, targets[chunk, None], by_logprob[chunk, None])
            by_logits = by_y.mul_(slope).div_(ctx.temperature).to(weight.dtype)
            by_hidden[chunk] = by_logits @ weight
            if by_weight is None:
                pass
            elif by_logits.dtype == torch.float32:
                by_weight.addmm_(by_logits.T, hidden[chunk])
            else:
                by_weight += by_logits.T @ hidden[chunk]
            if by_bias is not None:
                by_bias += by_logits.sum(0, dtype=torch.float32)
        return (
            by_hidden,
            None if by_weight is None else by_weight.to(weight.dtype),
            None if by_bias is None else by_bias.to(bias.dtype),
            None,
            None,
            None,
        )


def _chunks(hidden: Tensor, weight: Tensor) -> list[slice]:
    """Of the T tokens, each with at most `chunk_bytes` of logits."""
    size = max(1, chunk_bytes(devices.memory_bytes(hidden.device)) // (BYTES_PER_LOGIT * len(weight)))
    return [slice(start, start + size) for start in range(0, len(hidden), size)]


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """[chunk, V] float32, a tensor of its own."""
    return nn.functional.linear(hidden, weight, bias).float()
