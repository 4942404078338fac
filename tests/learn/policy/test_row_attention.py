"""Rows one after another for all but attention: each row's answer is its own, and so is its gradient."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from asyncrl.learn.policy.row_attention import row_attention
from asyncrl.learn.update.packing import branch_mask, rows_of_lengths

SCALING = 0.3


class Layer(nn.Module):
    """As much of a decoder layer's attention as the function asks for."""

    num_key_value_groups = 2
    is_causal = True


def random_inputs(num_tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(num_tokens)

    def random(num_heads: int) -> torch.Tensor:
        shape = (1, num_heads, num_tokens, 8)
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    return random(4), random(2), random(2)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_each_row_is_attended_to_as_if_it_were_alone(lengths: list[int]) -> None:
    inputs = random_inputs(sum(lengths))
    is_token = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    mask = branch_mask(is_token.long() - 1)
    rows = rows_of_lengths(np.array(lengths))
    answer, _ = row_attention(Layer(), *inputs, mask, rows=rows, scaling=SCALING)
    alone = [
        scaled_dot_product_attention(
            *(each[:, :, end - length : end] for each in inputs), is_causal=True, scale=SCALING, enable_gqa=True
        )
        for length, end in zip(lengths, np.cumsum(lengths).tolist(), strict=True)
    ]
    expected = torch.cat(alone, dim=2).transpose(1, 2)
    torch.testing.assert_close(answer, expected)
    weights = torch.linspace(-1, 1, answer.numel(), dtype=torch.float64).view_as(answer)
    gradients = torch.autograd.grad((weights * answer).sum(), inputs)
    torch.testing.assert_close(gradients, torch.autograd.grad((weights * expected).sum(), inputs))


def test_without_rows_it_is_causal_attention() -> None:
    inputs = random_inputs(7)
    answer, _ = row_attention(Layer(), *inputs, None, scaling=SCALING)
    expected = scaled_dot_product_attention(*inputs, is_causal=True, scale=SCALING, enable_gqa=True).transpose(1, 2)
    torch.testing.assert_close(answer, expected)
