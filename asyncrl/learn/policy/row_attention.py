"""Attention over rows whose tokens all other layers see one after another: only attention computes padding.

It is registered with transformers as `asyncrl_sdpa`: its own scaled-dot-product attention, and where rows are given
each gets a padded line of its own for the kernel. Where the tokens lie is computed once a micro-batch and reaches every
layer through the model's keyword arguments.

Legend: T tokens in R rows, the longest of L tokens; H heads, K of keys and values; D head size.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "asyncrl_sdpa"


class Rows(NamedTuple):
    """Where T tokens lie in R rows of L places."""

    token_at: Tensor
    """[R · L] int64: the token at each place; where there is none, any."""
    place_of: Tensor
    """[T] int64: the place of each token."""


def row_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    rows: Rows | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """As transformers calls an attention; without `rows` it is transformers' sdpa.

    With them: query [1, H, T, D], key and value [1, K, T, D], attention_mask [R, 1, L, L] → [1, T, H, D]. Padding has
    to see padding alone.
    """
    if rows is None:
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return output, None
    assert attention_mask is not None
    num_rows, length = attention_mask.shape[0], attention_mask.shape[-1]
    lines = [
        _Move.apply(each[0].transpose(0, 1), rows.token_at, rows.place_of).unflatten(0, (num_rows, length))
        for each in (query, key, value)
    ]
    padded, _ = sdpa_attention_forward(module, *(line.transpose(1, 2) for line in lines), attention_mask, **kwargs)
    return _Move.apply(padded.flatten(0, 1), rows.place_of, rows.token_at)[None], None


class _Move(torch.autograd.Function):
    """Tokens to places, or places to tokens. Padding gets any token's values and gradients; they reach padding alone.

    So both ways only read. The gradient of plain indexing would add up, one index after another.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, to: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return values.index_select(0, to)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (back,) = ctx.saved_tensors
        return gradient.index_select(0, back), None, None


AttentionInterface.register(NAME, row_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
