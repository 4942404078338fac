"""Log-probabilities and entropies of chosen tokens without ever holding all logits.

Legend: T tokens, H hidden size, V vocabulary size, K the most tokens that one could be sampled from.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from asyncrl import devices
from asyncrl.config.logit_transform import LogitTransform
from asyncrl.learn.policy.logit_chunks import BYTES_PER_LOGIT, chunk_bytes

NEVER = -1e30
"""The logit of a token that is not there; with −∞, 0 · logit would be NaN."""


def token_logprobs(
    hidden: Tensor,
    head: nn.Linear,
    targets: Tensor,
    temperature: float,
    transform: LogitTransform,
    supports: Tensor | None = None,
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
        supports: [T, K] ids of the tokens that top-k and top-p left, each target first, padded with −1: probabilities
            and entropy are those over them (DeepSeek-V3.2's sampling mask, 2512.02556). None or K = 0: over all V.

    Returns:
        logprobs [T] and entropy [T] (nats), float32 whatever the compute type.
    """
    columns = targets
    if supports is not None and supports.shape[1] > 0:
        columns = torch.zeros_like(targets)
    else:
        supports = None
    outputs: tuple[Tensor, Tensor] = _HeadLogprobs.apply(
        hidden, head.weight, head.bias, columns, temperature, transform, supports
    )
    return outputs


class _HeadLogprobs(torch.autograd.Function):
    """From hidden states to log-probabilities and entropies, with y the logits after transform and temperature,
    of the whole vocabulary or of each token's support, and each target in a column of its own:

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
        columns: Tensor,
        temperature: float,
        transform: LogitTransform,
        supports: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        logprobs, entropies, normalisers = (hidden.new_empty(len(hidden), dtype=torch.float32) for _ in range(3))
        for chunk in _chunks(hidden, weight):
            support = None if supports is None else supports[chunk]
            y = _without_padding(transform(_logits(hidden[chunk], weight, bias, support)).div_(temperature), support)
            largest = y.amax(-1, keepdim=True)
            p = (y - largest).exp_()
            total = p.sum(-1)
            normaliser = total.log() + largest.squeeze(-1)
            logprobs[chunk] = y.gather(-1, columns[chunk, None]).squeeze(-1) - normaliser
            entropies[chunk] = normaliser - torch.einsum("tv,tv->t", p, y) / total
            normalisers[chunk] = normaliser
        ctx.save_for_backward(hidden, weight, bias, columns, normalisers, entropies, supports)
        ctx.temperature, ctx.transform = temperature, transform
        ctx.set_materialize_grads(False)  # the gradient of an output that is not used is None
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        by_logprob, by_entropy = gradients
        hidden, weight, bias, columns, normalisers, entropies, supports = ctx.saved_tensors
        if by_logprob is None:
            by_logprob = torch.zeros_like(normalisers)
        by_hidden = torch.empty_like(hidden)
        needs_weight, needs_bias = ctx.needs_input_grad[1:3]  # a frozen head's are not computed
        by_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        by_bias = torch.zeros_like(bias, dtype=torch.float32) if needs_bias else None
        for chunk in _chunks(hidden, weight):
            support = None if supports is None else supports[chunk]
            transformed = ctx.transform(_logits(hidden[chunk], weight, bias, support))
            slope = ctx.transform.slope(transformed)
            log_p = transformed.div_(ctx.temperature).sub_(normalisers[chunk, None])
            log_p = _without_padding(log_p, support)
            by_y = log_p.exp()
            if by_entropy is None:
                by_y.mul_(-by_logprob[chunk, None])
            else:
                log_p.add_(entropies[chunk, None]).mul_(by_entropy[chunk, None]).add_(by_logprob[chunk, None])
                by_y.mul_(log_p.neg_())
            by_y.scatter_add_(-1, columns[chunk, None], by_logprob[chunk, None])
            by_y.mul_(slope).div_(ctx.temperature)
            if support is not None:
                by_y = by_y.new_zeros(len(by_y), len(weight)).scatter_add_(-1, _places(support), by_y)
            by_logits = by_y.to(weight.dtype)
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
            None,
        )


def _chunks(hidden: Tensor, weight: Tensor) -> list[slice]:
    """Of the T tokens, each with at most `chunk_bytes` of logits."""
    size = max(1, chunk_bytes(devices.memory_bytes(hidden.device)) // (BYTES_PER_LOGIT * len(weight)))
    return [slice(start, start + size) for start in range(0, len(hidden), size)]


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, support: Tensor | None) -> Tensor:
    """[chunk, V], or [chunk, K] of the support; float32, a tensor of its own."""
    logits = nn.functional.linear(hidden, weight, bias)
    return logits.float() if support is None else logits.gather(-1, _places(support)).float()


def _places(support: Tensor) -> Tensor:
    """[chunk, K] int64 columns of the vocabulary; that of padding is 0."""
    return support.clamp(min=0).long()


def _without_padding(scores: Tensor, support: Tensor | None) -> Tensor:
    """In place."""
    return scores if support is None else scores.masked_fill_(support < 0, NEVER)
