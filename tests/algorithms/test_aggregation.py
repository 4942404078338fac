"""Aggregations against loops, and the invariance for which they are weights."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asyncrl.algorithms.aggregation import token_weights
from asyncrl.config.checks.algorithm import ALGORITHM_CHOICES

CONSTANT = 7
prompts = st.lists(
    st.lists(st.lists(st.booleans(), min_size=1, max_size=6), min_size=1, max_size=3), min_size=1, max_size=4
)


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


@given(prompts, st.integers(0, 9))
def test_an_aggregation_equals_a_loop_and_any_split_of_its_sum(batch: list[list[list[bool]]], seed: int) -> None:
    sequences = list(chain.from_iterable(batch))
    mask = torch.tensor(list(chain.from_iterable(sequences)))
    sequence_ids = torch.tensor([i for i, sequence in enumerate(sequences) for _ in sequence])
    prompt_ids = torch.tensor([i for i, prompt in enumerate(batch) for sequence in prompt for _ in sequence])
    losses = torch.rand(len(mask), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def kept(ids: torch.Tensor) -> list[list[float]]:
        return [values for i in ids.unique() if (values := losses[(ids == i) & mask].tolist())]

    expected = {
        "token_mean": mean(losses[mask].tolist()),
        "sequence_mean": mean([mean(values) for values in kept(sequence_ids)]),
        "sequence_sum": mean([sum(values) / CONSTANT for values in kept(sequence_ids)]),
        "prompt_mean": mean([mean(values) for values in kept(prompt_ids)]),
    }
    for name in ALGORITHM_CHOICES["algorithm.aggregation"]:
        weights = token_weights(name, mask, sequence_ids, prompt_ids, CONSTANT)
        parts = [(weights * losses)[sequence_ids % 3 == part].sum().item() for part in range(3)]
        assert sum(parts) == pytest.approx(expected[name])
        assert (weights[~mask] == 0).all()
        assert (weights[mask] > 0).all()
