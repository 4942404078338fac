"""Log-probabilities and entropies of chosen tokens without ever holding all logits.

Legend: T tokens, H hidden size, V vocabulary size, K the most tokens that one could be sampled from; t tokens and v
columns of the vocabulary in one chunk.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from asyncrl import devices
from asyncrl.config.logit_transform import LogitTransform
from asyncrl.learn.policy.logit_chunks import chunk_shape
from asyncrl.learn.policy.score_gradient import add_product, by_logits, keep_for_backward, of_tokens
from asyncrl.learn.policy.support_logprob import SupportLogprobs


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
    scaled = replace(transform, scale=transform.scale / temperature)
    outputs: tuple[Tensor, Tensor]
    if supports is not None and supports.shape[1] > 0:
        outputs = SupportLogprobs.apply(hidden, head.weight, head.bias, supports, scaled)
    else:
        outputs = _HeadLogprobs.apply(hidden, head.weight, head.bias, targets, scaled)
    return outputs


class _HeadLogprobs(torch.autograd.Function):
    """From hidden states to log-probabilities and entropies, with y the transformed logits:

        logprob = y[target] − logsumexp(y)
        entropy = logsumexp(y) − Σ p·y

    The sums over the vocabulary go on from chunk to chunk, relative to the largest logit so far, as in online softmax
    (1805.02867). Logits lie as [v, t]: the products are faster so, and the sums over v as well. All tokens meet a part
    of the head before its next, so that this part's gradient adds up in float32 and is rounded once.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        transform: LogitTransform,
    ) -> tuple[Tensor, Tensor]:
        total, weighted, chosen = hidden.new_zeros(3, len(hidden), dtype=torch.float32)
        largest = torch.full_like(total, -torch.inf)
        parts, chunks = _parts_and_chunks(hidden, weight)
        for columns in parts:
            for tokens in chunks:
                y = transform(_logits(hidden[tokens], weight, bias, columns))
                rows, is_here = _rows(targets[tokens], columns)
                chosen[tokens] += y.gather(0, rows[None])[0] * is_here
                above = torch.maximum(largest[tokens], y.amax(0))
                p, shrunk = (y - above).exp_(), (largest[tokens] - above).exp_()
                total[tokens] = total[tokens] * shrunk + p.sum(0)
                weighted[tokens] = weighted[tokens] * shrunk + p.mul_(y).sum(0)
                largest[tokens] = above
        normalisers = total.log() + largest
        logprobs, entropies = chosen - normalisers, normalisers - weighted / total
        keep_for_backward(ctx, hidden, weight, bias, targets, normalisers, entropies)
        ctx.transform = transform
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, normalisers, entropies = ctx.saved_tensors
        known = of_tokens(normalisers, entropies, gradients)
        by_hidden = torch.zeros_like(hidden, dtype=torch.float32)
        needs_weight, needs_bias = ctx.needs_input_grad[1:3]  # a frozen head's are not computed
        by_weight = torch.empty_like(weight) if needs_weight else None
        by_bias = torch.zeros_like(bias, dtype=torch.float32) if needs_bias else None
        parts, chunks = _parts_and_chunks(hidden, weight)
        for columns in parts:
            by_columns = torch.zeros_like(weight[columns], dtype=torch.float32) if needs_weight else None
            for tokens in chunks:
                y = ctx.transform(_logits(hidden[tokens], weight, bias, columns))
                slope = ctx.transform.slope(y)
                log_p = y.sub_(normalisers[tokens])
                rows, is_here = _rows(targets[tokens], columns)
                by_part = by_logits(log_p, slope, known.at(tokens), rows, is_here).to(weight.dtype)
                add_product(by_hidden[tokens], by_part.T, weight[columns])
                if by_columns is not None:
                    add_product(by_columns, by_part, hidden[tokens])
                if by_bias is not None:
                    by_bias[columns] += by_part.sum(1, dtype=torch.float32)
            if by_weight is not None and by_columns is not None:
                by_weight[columns] = by_columns
        return (
            by_hidden.to(hidden.dtype),
            by_weight,
            None if by_bias is None else by_bias.to(bias.dtype),
            None,
            None,
        )


def _parts_and_chunks(hidden: Tensor, weight: Tensor) -> tuple[list[slice], list[slice]]:
    """Of the vocabulary, and of the tokens."""
    tokens, columns = chunk_shape(len(hidden), devices.memory_bytes(hidden.device))
    parts = [slice(start, min(start + columns, len(weight))) for start in range(0, len(weight), columns)]
    return parts, [slice(start, start + tokens) for start in range(0, len(hidden), tokens)]


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, columns: slice) -> Tensor:
    """[v, t] float32, a tensor of its own."""
    logits = weight[columns] @ hidden.T
    return logits.float() if bias is None else logits.add_(bias[columns, None]).float()


def _rows(targets: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
    """[t] the row of each target among these columns, and whether it is there."""
    rows = targets - columns.start
    is_here = (rows >= 0) & (targets < columns.stop)
    return rows.where(is_here, 0), is_here
