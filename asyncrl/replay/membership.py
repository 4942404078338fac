"""Which generators are up, which of them serve, and which leases each has not answered."""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass, field

from asyncrl.errors import WireError
from asyncrl.transport.messages.learning import Member


@dataclass
class _Generator:
    member: Member
    credit: int
    place: int
    """In order of arrival; of equally free generators, the first is given a lease."""
    serves: bool = False
    is_connected: bool = True
    leaves: bool = False
    unanswered: set[int] = field(default_factory=set)

    @property
    def num_free(self) -> int:
        is_ready = self.serves and self.is_connected and not self.leaves
        return self.credit - len(self.unanswered) if is_ready else 0


class Membership:
    """How many leases each generator may get. An expired lease takes credit: its generator may still work on it."""

    def __init__(self) -> None:
        self._generators: dict[str, _Generator] = {}
        self._places = itertools.count()
        self._by_free: list[tuple[int, int, str]] = []
        """Heap of (−free places, place, name); an entry that does not tell how a generator stands now is passed over.
        With 1,024 generators, a look at each of them for each lease would cost replay more than all else."""
        self._noted: set[tuple[int, int, str]] = set()
        """What the heap holds, so that it holds nothing twice: at most the sum of all credits."""

    def __contains__(self, name: str) -> bool:
        return name in self._generators

    @property
    def members(self) -> list[Member]:
        """The generators that are up and are to stay, in order of their names."""
        return [self._generators[name].member for name in sorted(self._generators) if not self._generators[name].leaves]

    @property
    def credits(self) -> list[tuple[Member, int]]:
        """All generators that are up, with their credit."""
        return [(generator.member, generator.credit) for generator in self._generators.values()]

    def restore(self, member: Member, credit: int, unanswered: set[int]) -> None:
        """A generator that said hello to an earlier replay process. It gets no lease before it says hello again."""
        self._generators[member.name] = _Generator(
            member, credit, next(self._places), serves=True, is_connected=False, unanswered=unanswered
        )

    def join(self, member: Member, credit: int, serves: bool, held: set[int]) -> None:
        """A generator is up, or connected again, and has the leases `held`."""
        leaves = member.name in self._generators and self._generators[member.name].leaves
        place = next(self._places)
        self._generators[member.name] = _Generator(member, credit, place, serves, leaves=leaves, unanswered=held)
        self._note_free(member.name)

    def serves(self, name: str) -> None:
        """It has the learner's weights and may be given leases.

        Raises:
            WireError: it never said hello.
        """
        if name not in self._generators:
            raise WireError(f"{name} serves and never said hello")
        self._generators[name].serves = True
        self._note_free(name)

    def remove(self, name: str) -> None:
        """The generator is gone, perhaps before it said hello."""
        self._generators.pop(name, None)

    def drain(self, name: str) -> None:
        """It is to leave: no new leases."""
        if name in self._generators:
            self._generators[name].leaves = True

    def is_idle(self, name: str) -> bool:
        """It holds no lease."""
        return name not in self._generators or not self._generators[name].unanswered

    @property
    def has_newcomers(self) -> bool:
        """A generator is up and has no weights from the learner yet."""
        return not all(generator.serves or generator.leaves for generator in self._generators.values())

    def freest(self) -> str | None:
        """The generator with the most free places, or None when there is no free place."""
        while self._by_free:
            negative_free, place, name = self._by_free[0]
            generator = self._generators.get(name)
            if generator is not None and (-generator.num_free, generator.place) == (negative_free, place):
                return name
            self._noted.remove(heapq.heappop(self._by_free))
        return None

    def _note_free(self, name: str) -> None:
        generator = self._generators[name]
        entry = (-generator.num_free, generator.place, name)
        if generator.num_free > 0 and entry not in self._noted:
            self._noted.add(entry)
            heapq.heappush(self._by_free, entry)

    def granted(self, name: str, lease_id: int) -> None:
        self._generators[name].unanswered.add(lease_id)
        self._note_free(name)

    def answered(self, name: str, lease_id: int) -> None:
        """Gives the lease's credit back.

        Raises:
            WireError: this generator does not hold it: never granted, given to another, or answered before.
        """
        generator = self._generators.get(name)
        if generator is None or lease_id not in generator.unanswered:
            raise WireError(f"{name} answered lease {lease_id}, which it does not hold")
        generator.unanswered.remove(lease_id)
        self._note_free(name)
