"""What stands in for torch's kernel where there is no GPU: the same call, the same answer as a dense mask."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from asyncrl.learn.policy import varlen_attention

STARTS = torch.tensor([0, 5, 6, 13], dtype=torch.int32)
SIZES = {"scale": 0.3, "enable_gqa": True}


@pytest.mark.parametrize("window", [-1, 2, 20])
def test_each_token_sees_its_own_sequence_up_to_itself_within_the_window(window: int) -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(13, 4, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    key, value = (torch.randn(13, 2, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    answer = varlen_attention.by_sequence(query, key, value, STARTS, STARTS, 7, 7, window_size=(window, 0), **SIZES)
    place, sequence = torch.arange(13), torch.bucketize(torch.arange(13), STARTS, right=True)
    back = place[:, None] - place
    seen = (sequence[:, None] == sequence) & (back >= 0) & (back <= (window if window >= 0 else 99))
    dense = [each.transpose(0, 1)[None] for each in (query, key, value)]
    expected = scaled_dot_product_attention(*dense, attn_mask=seen, **SIZES)[0].transpose(0, 1)
    torch.testing.assert_close(answer, expected)
    gradients = [torch.autograd.grad(each.square().sum(), query)[0] for each in (answer, expected)]
    torch.testing.assert_close(*gradients)


def test_torchs_kernel_takes_what_it_is_given() -> None:
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    query = key = value = torch.empty(13, 4, 8)
    inspect.signature(varlen.varlen_attn).bind(query, key, value, STARTS, STARTS, 7, 7, window_size=(-1, 0), **SIZES)
    assert varlen_attention._takes_what_is_passed()


def test_a_cpu_does_not_take_it_by_itself() -> None:
    assert not varlen_attention.runs_on(torch.device("cpu"), 64)
