"""Attention over sequences that share one row, without an extra package: torch's own kernel for variable lengths.

It is registered with transformers as `asyncrl_varlen`. On a GPU it is `torch.nn.attention.varlen`, which needs half
precision; elsewhere each sequence goes through scaled-dot-product attention by itself. Where the sequences lie is
computed once a micro-batch and reaches every layer through the model's keyword arguments.

Legend: T tokens of N sequences in one row; H heads, K of keys and values; D head size.
"""

from __future__ import annotations

import inspect
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from asyncrl import devices
from asyncrl.errors import ConfigError
from asyncrl.learn.policy.context_parallel import Context, to_heads, to_tokens

NAME = "asyncrl_varlen"


class Segments(NamedTuple):
    """N sequences one after another in a row; computed once, so that no layer has to."""

    starts: Tensor
    """[N + 1] int32: where each begins, and where the last one ends."""
    longest: int
    """Tokens."""

    @property
    def kernel_arguments(self) -> dict[str, Any]:
        """As transformers names them."""
        return {
            "cu_seq_lens_q": self.starts,
            "cu_seq_lens_k": self.starts,
            "max_length_q": self.longest,
            "max_length_k": self.longest,
        }


def varlen_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    softcap: float | None = None,
    context: Context | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """As transformers calls an attention: query [1, H, T, D], key and value [1, K, T, D] → [1, T, H, D].

    Args:
        cu_seq_lens_q: [N + 1] int32, where each sequence begins, and T.
        max_length_q: tokens of the longest.
        context: the ranks that share the row, where this one has a part of it; the lengths are those of the whole.

    Raises:
        ConfigError: the model keeps those two from its layers, or caps its scores, which the kernel cannot.
    """
    if cu_seq_lens_q is None or max_length_q is None or softcap is not None:
        reason = "caps its attention scores" if softcap is not None else "does not tell its layers where sequences lie"
        raise ConfigError(f"{type(module).__name__} {reason}, so model.attention={NAME} cannot be; set sdpa or eager")
    attend = _torch_varlen() if devices.is_accelerator(query.device.type) else by_sequence
    window = (-1 if sliding_window is None else sliding_window - 1, 0)
    query, key, value = (each[0].transpose(0, 1) for each in (query, key, value))
    if context is not None:
        query, key, value = (to_heads(each, context) for each in (query, key, value))
    has_groups = query.shape[1] != key.shape[1]
    lengths = (cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q)
    output = attend(query, key, value, *lengths, scale=scaling, window_size=window, enable_gqa=has_groups)
    return (output if context is None else to_tokens(output, context))[None], None


def by_sequence(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> Tensor:
    """What `torch.nn.attention.varlen.varlen_attn` answers, by a loop; causal. query [T, H, D] → [T, H, D]."""
    assert window_size[1] == 0, "causal"
    outputs = []
    for start, end in pairwise(cu_seq_q.tolist()):
        q, k, v = (each[start:end].transpose(0, 1)[None] for each in (query, key, value))
        mask = None
        if 0 <= window_size[0] < end - start - 1:
            mask = torch.ones(end - start, end - start, dtype=torch.bool, device=query.device).tril()
            mask = mask.triu(-window_size[0])
        attended = scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=enable_gqa
        )
        outputs.append(attended[0].transpose(0, 1))
    return torch.cat(outputs)


def runs_on(device: torch.device, head_dim: int) -> bool:
    """Whether torch's kernel can be used there: an NVIDIA GPU from Ampere on, heads of at most 256."""
    return head_dim <= 256 and devices.is_ampere_or_later(device) and _takes_what_is_passed()


def _takes_what_is_passed() -> bool:
    """torch's kernel is young: earlier ones have no window and no grouped queries."""
    try:
        parameters = inspect.signature(_torch_varlen()).parameters
    except ImportError:
        return False
    return {"scale", "window_size", "enable_gqa"} <= parameters.keys()


def _torch_varlen() -> Any:
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn


AttentionInterface.register(NAME, varlen_attention)
