"""The parts of a packed row make the row."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from asyncrl.config.algorithm import AlgorithmConfig
from asyncrl.learn.update.mini_batches import mini_batches
from asyncrl.learn.update.packing import build_micro_batch
from asyncrl.learn.update.row_part import row_part
from tests.support.learn import random_batch


@given(st.integers(0, 1000), st.integers(1, 7), st.integers(0, 4))
def test_parts_are_equal_and_hold_each_token_and_each_action_token_once(
    seed: int, num_parts: int, num_sequences: int
) -> None:
    (mini_batch,) = mini_batches(
        random_batch(seed, step=9),
        AlgorithmConfig(),
        max_staleness=2,
        mini_batch_size=4,
        max_tokens=8,
    )
    whole = build_micro_batch(mini_batch, [[sequence] for sequence in range(num_sequences)], "packed")
    cut = [row_part(whole, rank, num_parts) for rank in range(num_parts)]
    parts = [part for part, _ in cut]
    size = parts[0].input_ids.shape[1]
    num_tokens = whole.input_ids.shape[1]
    assert 0 <= size * num_parts - num_tokens < num_parts
    for field in ("input_ids", "position_ids"):
        joined = torch.cat([getattr(part, field) for part in parts], 1)
        assert torch.equal(joined[:, :num_tokens], getattr(whole, field))
    assert torch.stack([is_here for _, is_here in cut]).sum(0).tolist() == [1] * len(whole.indices)
    for rank, (part, is_here) in enumerate(cut):
        assert part.segments is not None
        assert part.segments.starts[-1] == size * num_parts
        assert torch.equal(part.indices[:-1] + rank * size, whole.indices[is_here])
        assert torch.equal(part.actions.targets[:-1], whole.actions.targets[is_here])
        assert part.indices.max() < size
        lengths = part.segments.starts.diff()
        assert part.segments.longest == lengths.max()
        starts_here = (part.position_ids == 0).sum()
        own = range(rank * size, (rank + 1) * size)
        assert starts_here == sum(start in own for start in part.segments.starts[:-1].tolist())
