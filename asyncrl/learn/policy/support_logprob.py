"""Log-probabilities over the few tokens that top-k and top-p left, from their rows of the head alone.

Legend: T tokens, each sampled from at most K; H hidden size, V vocabulary size; t tokens in one chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from asyncrl import devices
from asyncrl.config.logit_transform import LogitTransform
from asyncrl.learn.policy.logit_chunks import chunk_bytes
from asyncrl.learn.policy.score_gradient import by_logits, keep_for_backward, of_tokens

NEVER = -1e30
"""The score of a token that is not there; with −∞, 0 · score would be NaN."""


class SupportLogprobs(torch.autograd.Function):
    """As `logprob.token_logprobs`, over supports; targets come first in them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        supports: Tensor,
        transform: LogitTransform,
        float32_products: bool,
    ) -> tuple[Tensor, Tensor]:
        logprobs, entropies, normalisers = hidden.new_empty(3, len(hidden), dtype=torch.float32)
        for tokens in _tokens(supports, weight):
            y, _ = _logits(hidden[tokens], weight, bias, supports[tokens], float32_products)
            y = _without_padding(transform(y), supports[tokens])
            normalisers[tokens] = y.logsumexp(0)
            log_p = y - normalisers[tokens]
            logprobs[tokens] = log_p[0]
            entropies[tokens] = -(log_p.exp() * log_p).sum(0)
        keep_for_backward(ctx, hidden, weight, bias, supports, normalisers, entropies)
        ctx.transform, ctx.float32_products = transform, float32_products
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, supports, normalisers, entropies = ctx.saved_tensors
        known = of_tokens(normalisers, entropies, gradients)
        targets_row = torch.zeros(len(hidden), dtype=torch.int64, device=hidden.device)
        by_hidden = torch.empty_like(hidden)
        needs_weight, needs_bias = ctx.needs_input_grad[1:3]
        by_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        by_bias = torch.zeros_like(bias, dtype=torch.float32) if needs_bias else None
        for tokens in _tokens(supports, weight):
            y, rows = _logits(hidden[tokens], weight, bias, supports[tokens], ctx.float32_products)
            y = ctx.transform(y)
            slope = ctx.transform.slope(y)
            log_p = _without_padding(y.sub_(normalisers[tokens]), supports[tokens])
            by_part = by_logits(log_p, slope, known.at(tokens), targets_row[tokens], is_here=True).to(weight.dtype)
            by_hidden[tokens] = torch.einsum("kt,tkh->th", by_part, rows)
            ids = _ids(supports[tokens]).flatten()
            if by_weight is not None:
                by_rows = by_part.T[..., None] * hidden[tokens, None]
                by_weight.index_add_(0, ids, by_rows.flatten(0, 1).float())
            if by_bias is not None:
                by_bias.index_add_(0, ids, by_part.T.flatten().float())
        return (
            by_hidden,
            None if by_weight is None else by_weight.to(weight.dtype),
            None if by_bias is None else by_bias.to(bias.dtype),
            *(None, None, None),
        )


def _tokens(supports: Tensor, weight: Tensor) -> Iterator[slice]:
    """Of the T tokens; the rows of the head and their gradient, in float32, take at most `chunk_bytes`."""
    bytes_per_token = supports.shape[1] * weight.shape[1] * (weight.element_size() + 4)
    size = max(1, chunk_bytes(devices.memory_bytes(weight.device)) // bytes_per_token)
    return (slice(start, start + size) for start in range(0, len(supports), size))


def _logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, support: Tensor, float32_products: bool
) -> tuple[Tensor, Tensor]:
    """[K, t] float32, a tensor of its own; and the rows [t, K, H] of the head."""
    ids = _ids(support)
    rows = weight[ids]
    factors = (rows.float(), hidden.float()) if float32_products else (rows, hidden)
    logits = torch.einsum("tkh,th->kt", *factors)
    return (logits if bias is None else logits + bias[ids].T).float(), rows


def _ids(support: Tensor) -> Tensor:
    """[t, K] int64; that of padding is 0."""
    return support.clamp(min=0).long()


def _without_padding(scores: Tensor, support: Tensor) -> Tensor:
    """[K, t], in place."""
    return scores.masked_fill_(support.T < 0, NEVER)
