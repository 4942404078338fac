"""The parts of `generator.engine=sglang` that need no SGLang: how tokens are drawn, and a stand-in's table."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from asyncrl.generate.engines.sglang.draw import GOLDEN, MIX, draw, uniform
from asyncrl.generate.engines.sglang.missing_packages import assign_req_to_token_pool

WORD = (1 << 64) - 1
SEEDS = st.integers(0, (1 << 63) - 1)
POSITIONS = st.integers(0, 1 << 20)


def splitmix(word: int) -> int:
    """As published, in Python's own integers."""
    word = (word ^ word >> 30) * (MIX[0] & WORD) & WORD
    word = (word ^ word >> 27) * (MIX[1] & WORD) & WORD
    return word ^ word >> 31


@given(st.lists(st.tuples(SEEDS, POSITIONS), min_size=1, max_size=8))
def test_a_seed_and_a_position_make_the_number_that_splitmix_makes(pairs):
    seeds, positions = (torch.tensor(side) for side in zip(*pairs, strict=True))
    golden = GOLDEN & WORD
    words = [splitmix(splitmix(seed * golden & WORD) + (position + 1) * golden & WORD) for seed, position in pairs]
    assert uniform(seeds, positions).tolist() == [(word >> 11) / 2**53 for word in words]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9).filter(lambda weights: sum(weights) > 0), SEEDS, POSITIONS)
def test_a_token_that_cannot_come_is_never_drawn(weights, seed, position):
    probs = torch.tensor([weights])
    if probs.sum() > 0:
        assert probs[0, draw(probs, torch.tensor([seed]), torch.tensor([position]))[0]] > 0


def test_tokens_are_drawn_as_often_as_they_are_likely_over_seeds_and_over_positions():
    probs, num_draws = torch.tensor([0.5, 0.0, 0.3, 0.2]), 20_000
    many = torch.arange(num_draws)
    for seeds, positions in ((many, torch.zeros_like(many)), (torch.full_like(many, 7), many)):
        drawn = draw(probs.expand(num_draws, -1), seeds, positions)
        frequencies = torch.bincount(drawn, minlength=4) / num_draws
        assert torch.allclose(frequencies, probs, atol=4 * (0.25 / num_draws) ** 0.5)


def test_a_row_is_drawn_alike_in_any_company():
    probs, seeds, positions = torch.rand(16, 50).softmax(-1), torch.arange(16), torch.arange(16) * 3
    together = draw(probs, seeds, positions)
    alone = [draw(probs[k : k + 1], seeds[k : k + 1], positions[k : k + 1]) for k in range(16)]
    assert together.tolist() == torch.cat(alone).tolist()


def test_the_stand_in_fills_each_requests_row_from_its_start_to_its_end():
    table = torch.full((3, 5), -1, dtype=torch.int32)
    rows, starts, ends = torch.tensor([2, 0]), torch.tensor([1, 0]), torch.tensor([4, 2])
    assign_req_to_token_pool(rows, table, starts, ends, torch.tensor([10, 11, 12, 20, 21]), 5)
    assert table.tolist() == [[20, 21, -1, -1, -1], [-1] * 5, [-1, 10, 11, 12, -1]]
