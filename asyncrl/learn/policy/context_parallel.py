"""Context parallelism: C ranks compute each row of tokens together, each 1/C of its tokens; in attention, of its heads.

    every layer but attention   [T/C, H, D] on each rank: its own tokens, all heads
    attention                   [T, H/C, D] on each rank: all tokens, its own heads

Between the two goes an all-to-all (Ulysses, arXiv 2309.14509), so that the kernel sees whole sequences.

Legend: T tokens of a row, a multiple of C; H heads, of queries or of keys and values; D head size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from asyncrl.learn.rank_groups import rank_group


class Context(NamedTuple):
    """The ranks that share rows."""

    group: dist.ProcessGroup
    size: int
    """C."""
    rank: int
    """Which part of a row is this one's."""


_Way = Callable[[Tensor, Context], Tensor]


def split_ranks(mesh: DeviceMesh, context_size: int, timeout_s: float) -> tuple[DeviceMesh, Context | None]:
    """C ranks one after another share rows; those of the same place in each C share the sequences out. Collective.

    Args:
        mesh: one dimension, all learner ranks.
        timeout_s: of what a group does.

    Returns:
        The mesh of those among which this rank's sequences are shared out, and those with which it shares rows.
    """
    if context_size == 1:
        return mesh, None
    places = mesh.mesh.view(-1, context_size)
    contexts, own_context = _groups(places, timeout_s)
    data, own_data = _groups(places.T, timeout_s)
    context = Context(contexts[own_context], context_size, dist.get_rank(contexts[own_context]))
    return DeviceMesh.from_group(data[own_data], mesh.device_type), context


def _groups(ranks: Tensor, timeout_s: float) -> tuple[list[dist.ProcessGroup], int]:
    """A group for each line of ranks, made by all ranks in the same order; and which is this rank's."""
    groups = [rank_group(line, timeout_s) for line in ranks.tolist()]
    return groups, int((ranks == dist.get_rank()).any(1).nonzero())


def to_heads(own_tokens: Tensor, context: Context) -> Tensor:
    """[T/C, H, D] → [T, H/C, D]. Collective."""
    heads: Tensor = _Exchange.apply(own_tokens, _tokens_to_heads, _heads_to_tokens, context)
    return heads


def to_tokens(own_heads: Tensor, context: Context) -> Tensor:
    """[T, H/C, D] → [T/C, H, D]. Collective."""
    tokens: Tensor = _Exchange.apply(own_heads, _heads_to_tokens, _tokens_to_heads, context)
    return tokens


def join(own: Tensor, is_own: Tensor, context: Context) -> Tensor:
    """The values that ranks have each a part of, on each of them. Collective.

    Every rank computes the same from the whole, so its own part's gradient is complete.

    Args:
        own: [K], this rank's.
        is_own: [N] bool, where they belong.
    """
    whole: Tensor = _Join.apply(own, is_own, context)
    return whole


class _Exchange(torch.autograd.Function):
    """There forwards, and back for the gradient."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, there: _Way, back: _Way, context: Context) -> Tensor:
        ctx.back, ctx.context = back, context
        return there(values, context)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.back(gradients[0], ctx.context), None, None, None


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, is_own: Tensor, context: Context) -> Tensor:
        ctx.save_for_backward(is_own)
        whole = own.new_zeros(len(is_own))
        whole[is_own] = own
        dist.all_reduce(whole, group=context.group)
        return whole

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (is_own,) = ctx.saved_tensors
        return gradients[0][is_own], None, None


def _tokens_to_heads(own_tokens: Tensor, context: Context) -> Tensor:
    num_tokens, num_heads, head_dim = own_tokens.shape
    for_each = own_tokens.view(num_tokens, context.size, num_heads // context.size, head_dim).transpose(0, 1)
    return _exchanged(for_each, context).flatten(0, 1)


def _heads_to_tokens(own_heads: Tensor, context: Context) -> Tensor:
    for_each = own_heads.unflatten(0, (context.size, -1))
    return _exchanged(for_each, context).transpose(0, 1).flatten(1, 2)


def _exchanged(for_each: Tensor, context: Context) -> Tensor:
    """[C, …] → [C, …]: from each rank what it has for this one."""
    received = torch.empty_like(for_each, memory_format=torch.contiguous_format)
    dist.all_to_all_single(received, for_each.contiguous(), group=context.group)
    return received
