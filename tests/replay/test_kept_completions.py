"""KeptCompletions by itself; on sockets: test_generator_exits.py."""

import pytest

from asyncrl.errors import WireError
from asyncrl.replay.kept_completions import KeptCompletions
from asyncrl.transport.messages.rollouts import CompletionDone
from asyncrl.transport.wire import FRAMES_PER_GROUP, group_to_wire
from tests.support.wire import make_group


def done(index: int, position: int, version: int = 0, size: int = 1) -> tuple[CompletionDone, list]:
    header, frames = group_to_wire(make_group(index, version, rewards=(0.0,) * size))
    return CompletionDone(1, position, header), frames


def test_what_is_kept_is_handed_on_in_order_and_again_until_the_prompt_has_come_back():
    kept = KeptCompletions(4)
    for position in (2, 0, 2):
        kept.keep(7, *done(7, position))
    for _ in range(2):
        headers, frames = kept.hand_on(7, oldest_version=0)
        assert [each.position for each in headers] == [0, 2]
        assert len(frames) == 2 * FRAMES_PER_GROUP
    assert (len(kept), kept.num_handed_on) == (2, 4)
    kept.forget(7)
    assert kept.hand_on(7, oldest_version=0) == ([], [])


def test_what_is_over_the_bound_is_dropped():
    kept = KeptCompletions(4)
    kept.keep(7, *done(7, 0, version=2))
    kept.keep(7, *done(7, 1, version=3))
    assert [each.position for each in kept.hand_on(7, oldest_version=3)[0]] == [1]
    assert len(kept) == 1


@pytest.mark.parametrize(("index", "position", "size"), [(8, 0, 1), (7, 4, 1), (7, -1, 1), (7, 0, 2)])
def test_what_is_no_completion_of_the_prompt_is_refused(index, position, size):
    with pytest.raises(WireError, match="no completion of prompt 7"):
        KeptCompletions(4).keep(7, *done(index, position, size=size))
