from hypothesis import given, settings
from hypothesis import strategies as st

from asyncrl.data.prompt_order import PromptOrder

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
