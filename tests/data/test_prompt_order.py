from bisect import bisect
from collections import Counter
from itertools import accumulate

from hypothesis import given, settings
from hypothesis import strategies as st

from asyncrl.data.prompt_order import MixtureOrder, PromptOrder

sizes = st.integers(1, 50)
seeds = st.integers(0, 2**32)


@settings(deadline=None)
@given(num_prompts=sizes, seed=seeds, epoch=st.integers(0, 1000), shuffle=st.booleans())
def test_each_epoch_visits_every_prompt_exactly_once(num_prompts, seed, epoch, shuffle):
    order = PromptOrder(num_prompts, shuffle, seed)
    positions = [order.position(epoch * num_prompts + offset) for offset in range(num_prompts)]
    assert sorted(positions) == list(range(num_prompts))
    assert shuffle or positions == list(range(num_prompts))


@settings(deadline=None)
@given(num_prompts=sizes, seed=seeds, indices=st.lists(st.integers(0, 500)))
def test_a_position_depends_on_the_index_alone_and_not_on_what_was_asked_before(num_prompts, seed, indices):
    used = PromptOrder(num_prompts, True, seed)
    for index in indices:
        assert used.position(index) == PromptOrder(num_prompts, True, seed).position(index)


def test_epochs_and_seeds_differ():
    def epoch(seed: int, number: int) -> list[int]:
        order = PromptOrder(100, True, seed)
        return [order.position(100 * number + offset) for offset in range(100)]

    assert len({tuple(epoch(seed, number)) for seed in (0, 1) for number in (0, 1, 2)}) == 6


shares = st.lists(st.sampled_from([0.1, 0.25, 1.0, 1.5, 3.0, 1e-3, 7.0]), min_size=1, max_size=4)


@settings(deadline=None)
@given(weights=shares, seed=seeds, shuffle=st.booleans(), start=st.integers(0, 5000), num=st.integers(1, 300))
def test_of_any_consecutive_draws_each_data_set_has_its_share_to_one_and_the_sets_before_it(
    weights, seed, shuffle, start, num
):
    sizes = [7 + 3 * number for number in range(len(weights))]
    ends = list(accumulate(sizes))
    order = MixtureOrder(sizes, weights, shuffle, seed)
    drawn = Counter(bisect(ends, order.position(index)) for index in range(start, start + num))
    for number, weight in enumerate(weights):
        assert abs(drawn[number] - num * weight / sum(weights)) <= number + 1


@settings(deadline=None)
@given(weights=shares, seed=seeds, shuffle=st.booleans())
def test_each_data_set_of_a_mixture_goes_through_epochs_of_its_own(weights, seed, shuffle):
    sizes = [2 + number for number in range(len(weights))]
    ends = list(accumulate(sizes))
    order = MixtureOrder(sizes, weights, shuffle, seed)
    positions = [order.position(index) for index in range(200)]
    for number, size in enumerate(sizes):
        mine = [position for position in positions if bisect(ends, position) == number]
        epochs = [mine[first : first + size] for first in range(0, len(mine) - size + 1, size)]
        assert all(sorted(epoch) == list(range(ends[number] - size, ends[number])) for epoch in epochs)


def test_a_mixture_of_one_weight_each_takes_turns_and_data_sets_of_one_size_are_in_different_orders():
    order = MixtureOrder([50, 50], [2.0, 2.0], True, 0)
    positions = [order.position(index) for index in range(100)]
    assert [position // 50 for position in positions] == [1, 0] * 50
    assert [position % 50 for position in positions[::2]] != [position % 50 for position in positions[1::2]]
