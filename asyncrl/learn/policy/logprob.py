"""Log-probabilities and entropies of chosen tokens without ever holding all logits.

Legend: T tokens, H hidden size, V vocabulary size, K the most tokens that one could be sampled from; t tokens and v
columns of the vocabulary in one chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from asyncrl import devices
from asyncrl.config.logit_transform import LogitTransform
from asyncrl.learn.policy.decoder_layers import COMPILER
from asyncrl.learn.policy.logit_chunks import chunk_shape
from asyncrl.learn.policy.logit_product import product
from asyncrl.learn.policy.score_gradient import OfTokens, add_product, by_logits, keep_for_backward, of_tokens
from asyncrl.learn.policy.support_logprob import SupportLogprobs


def token_logprobs(
    hidden: Tensor,
    head: nn.Linear,
    targets: Tensor,
    temperature: float,
    transform: LogitTransform,
    supports: Tensor | None = None,
    *,
    float32_products: bool = False,
    compiled: bool = False,
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
        float32_products: logits of half-precision factors are not rounded to half precision.
        compiled: what happens to a chunk's logits goes through torch.compile, which needs a compiler; without supports.

    Returns:
        logprobs [T] and entropy [T] (nats), float32 whatever the compute type.
    """
    scaled = replace(transform, scale=transform.scale / temperature)
    outputs: tuple[Tensor, Tensor]
    if supports is not None and supports.shape[1] > 0:
        outputs = SupportLogprobs.apply(hidden, head.weight, head.bias, supports, scaled, float32_products)
    else:
        outputs = _HeadLogprobs.apply(hidden, head.weight, head.bias, targets, scaled, float32_products, compiled)
    return outputs


class _Sums(NamedTuple):
    """Over the part of the vocabulary that t tokens have met, [t] each; the first two relative to the largest logit."""

    total: Tensor
    """Σ exp(y)."""
    weighted: Tensor
    """Σ exp(y)·y."""
    largest: Tensor
    chosen: Tensor
    """Logit of the target, once it was met."""


class _Part(NamedTuple):
    """v columns of the vocabulary for t tokens."""

    hidden: Tensor
    """[t, H]."""
    weight: Tensor
    """[v, H]."""
    bias: Tensor | None
    rows: Tensor
    """[t] of each target."""
    is_here: Tensor
    """[t] whether the target is among these v."""

    def logits(self, float32_products: bool) -> Tensor:
        """[v, t] float32, a tensor of its own."""
        return product(self.weight, self.hidden.T, self.bias, float32_products)


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
        float32_products: bool,
        compiled: bool,
    ) -> tuple[Tensor, Tensor]:
        all_sums = hidden.new_zeros(4, len(hidden), dtype=torch.float32)
        all_sums[_Sums._fields.index("largest")] = -torch.inf
        add = _compiled(_with_part) if compiled else _with_part
        parts, chunks = _parts_and_chunks(hidden, weight)
        for columns in parts:
            for tokens in chunks:
                part = _part(hidden, weight, bias, targets, columns, tokens)
                sums = add(part, _Sums(*all_sums[:, tokens]), transform, float32_products)
                all_sums[:, tokens] = torch.stack(sums)
        total, weighted, largest, chosen = all_sums
        normalisers = total.log() + largest
        logprobs, entropies = chosen - normalisers, normalisers - weighted / total
        keep_for_backward(ctx, hidden, weight, bias, targets, normalisers, entropies)
        ctx.settings = transform, float32_products, compiled
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, normalisers, entropies = ctx.saved_tensors
        known = of_tokens(normalisers, entropies, gradients)
        transform, float32_products, compiled = ctx.settings
        gradient_of = _compiled(_part_gradient) if compiled else _part_gradient
        by_hidden = torch.zeros_like(hidden, dtype=torch.float32)
        needs_weight, needs_bias = ctx.needs_input_grad[1:3]  # a frozen head's are not computed
        by_weight = torch.empty_like(weight) if needs_weight else None
        by_bias = torch.zeros_like(bias, dtype=torch.float32) if needs_bias else None
        parts, chunks = _parts_and_chunks(hidden, weight)
        for columns in parts:
            by_columns = torch.zeros_like(weight[columns], dtype=torch.float32) if needs_weight else None
            for tokens in chunks:
                part = _part(hidden, weight, bias, targets, columns, tokens)
                by_part = gradient_of(part, known.at(tokens), transform, float32_products)
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
            *(None, None, None, None),
        )


def _with_part(part: _Part, sums: _Sums, transform: LogitTransform, float32_products: bool) -> _Sums:
    y = transform(part.logits(float32_products))
    largest = torch.maximum(sums.largest, y.amax(0))
    p, shrunk = (y - largest).exp_(), (sums.largest - largest).exp_()
    total = sums.total * shrunk + p.sum(0)
    chosen = sums.chosen + y.gather(0, part.rows[None])[0] * part.is_here
    return _Sums(total, sums.weighted * shrunk + p.mul_(y).sum(0), largest, chosen)


def _part_gradient(part: _Part, known: OfTokens, transform: LogitTransform, float32_products: bool) -> Tensor:
    """[v, t], in the head's type."""
    y = transform(part.logits(float32_products))
    slope = transform.slope(y)
    log_p = y.sub_(known.normalisers)
    return by_logits(log_p, slope, known, part.rows, part.is_here).to(part.weight.dtype)


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A chunk's logits are read and written once, and not by each operator: on a GPU they come from its memory."""
    return torch.compile(function, dynamic=True, backend=COMPILER)


def _parts_and_chunks(hidden: Tensor, weight: Tensor) -> tuple[list[slice], list[slice]]:
    """Of the vocabulary, and of the tokens."""
    tokens, columns = chunk_shape(len(hidden), devices.memory_bytes(hidden.device))
    parts = [slice(start, min(start + columns, len(weight))) for start in range(0, len(weight), columns)]
    return parts, [slice(start, start + tokens) for start in range(0, len(hidden), tokens)]


def _part(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, columns: slice, tokens: slice) -> _Part:
    rows = targets[tokens] - columns.start
    is_here = (rows >= 0) & (targets[tokens] < columns.stop)
    of_columns = None if bias is None else bias[columns]
    return _Part(hidden[tokens], weight[columns], of_columns, rows.where(is_here, 0), is_here)
