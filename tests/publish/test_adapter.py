"""What a worker makes of its part of a weight is that part of the whole merged weight."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from asyncrl.publish.adapter import merged_part
from asyncrl.publish.plan import Region


@given(
    rows=st.integers(1, 12),
    columns=st.integers(1, 12),
    rank=st.integers(1, 4),
    bfloat16=st.booleans(),
    adapter_bfloat16=st.booleans(),
    transposed=st.booleans(),
    data=st.data(),
)
def test_a_part_is_merged_as_it_is_in_the_whole(
    rows: int,
    columns: int,
    rank: int,
    bfloat16: bool,
    adapter_bfloat16: bool,
    transposed: bool,
    data: st.DataObject,
) -> None:
    torch.manual_seed(rows * columns * rank)
    base = torch.randn(rows, columns).to(torch.bfloat16 if bfloat16 else torch.float32)
    adapter_type = torch.bfloat16 if adapter_bfloat16 else torch.float32
    lora_a, lora_b = torch.randn(rank, columns).to(adapter_type), torch.randn(rows, rank).to(adapter_type)
    first, left = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))
    end, right = data.draw(st.integers(first + 1, rows)), data.draw(st.integers(left + 1, columns))
    view = base[first:end, left:right]
    whole = (base.double() + lora_b.double() @ lora_a.double())[first:end, left:right]
    if transposed:
        view, whole = view.T, whole.T
    found = merged_part(view.contiguous(), Region.of(view), lora_a, lora_b)
    assert found.dtype == base.dtype
    torch.testing.assert_close(found.double(), whole, rtol=0.01 if bfloat16 else 1e-5, atol=0.01 if bfloat16 else 1e-5)
