"""Who is given the next lease."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from asyncrl.replay.membership import Membership
from asyncrl.transport.messages.learning import Member

NAMES = [f"generator-{rank}" for rank in range(4)]
events = st.lists(st.tuples(st.sampled_from(["join", "remove", "drain", "grant", "answer"]), st.sampled_from(NAMES)))


@given(events, st.integers(1, 3))
def test_the_next_lease_goes_to_the_generator_with_the_most_free_places(
    events: list[tuple[str, str]], credit: int
) -> None:
    membership = Membership()
    held: dict[str, list[int]] = {}
    leaving: set[str] = set()
    for lease_id, (event, name) in enumerate(events):
        match event:
            case "join":
                membership.join(Member(name, "", 1), credit, serves=True, held=set())
                held[name] = []
            case "remove":
                membership.remove(name)
                held.pop(name, None)
                leaving.discard(name)
            case "drain" if name in held:
                membership.drain(name)
                leaving.add(name)
            case "grant" if (freest := membership.freest()) is not None:
                membership.granted(freest, lease_id)
                held[freest].append(lease_id)
            case "answer" if held.get(name):
                membership.answered(name, held[name].pop())
        free = {name: credit - len(leases) for name, leases in held.items() if name not in leaving}
        freest = membership.freest()
        assert max(free.values(), default=0) == (0 if freest is None else free[freest])
