"""The generators that have said hello, which of them serve, and the leases that each of them has not answered."""

from __future__ import annotations

from dataclasses import dataclass, field

from asyncrl.errors import WireError
from asyncrl.transport.messages.learning import Member


@dataclass
class _Generator:
    member: Member
    credit: int
    serves: bool = False
    is_connected: bool = True
    leaves: bool = False
    unanswered: set[int] = field(default_factory=set)

    @property
    def num_free(self) -> int:
        is_ready = self.serves and self.is_connected and not self.leaves
        return self.credit - len(self.unanswered) if is_ready else 0


class Membership:
    """Who may be given how many leases. An expired lease keeps its place: the generator may still be at work on it."""

    def __init__(self) -> None:
        self._generators: dict[str, _Generator] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._generators

    @property
    def members(self) -> list[Member]:
        """Those that are to stay, in order of their names."""
        return [self._generators[name].member for name in sorted(self._generators) if not self._generators[name].leaves]

    @property
    def credits(self) -> list[tuple[Member, int]]:
        """All of them, with their credit."""
        return [(generator.member, generator.credit) for generator in self._generators.values()]

    def restore(self, member: Member, credit: int, unanswered: set[int]) -> None:
        """A generator that said hello to an earlier replay process; it is given nothing before it says hello again."""
        self._generators[member.name] = _Generator(
            member, credit, serves=True, is_connected=False, unanswered=unanswered
        )

    def join(self, member: Member, credit: int, serves: bool, held: set[int]) -> None:
        """A generator is up, or connected again, and has the leases `held`."""
        leaves = member.name in self._generators and self._generators[member.name].leaves
        self._generators[member.name] = _Generator(member, credit, serves, leaves=leaves, unanswered=held)

    def serves(self, name: str) -> None:
        """It has the learner's weights and may be given leases.

        Raises:
            WireError: it never said hello.
        """
        if name not in self._generators:
            raise WireError(f"{name} serves and never said hello")
        self._generators[name].serves = True

    def remove(self, name: str) -> None:
        """It is gone; it may have gone before it said hello."""
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
        """One is up and has no weights of the learner's yet."""
        return not all(generator.serves or generator.leaves for generator in self._generators.values())

    def freest(self) -> str | None:
        """The generator with the most free places, or None when there is no free place."""
        name = max(self._generators, key=lambda name: self._generators[name].num_free, default=None)
        return name if name is not None and self._generators[name].num_free > 0 else None

    def granted(self, name: str, lease_id: int) -> None:
        self._generators[name].unanswered.add(lease_id)

    def answered(self, name: str, lease_id: int) -> None:
        """Frees the lease's place.

        Raises:
            WireError: this generator does not hold it: never granted, given to another, or answered before.
        """
        generator = self._generators.get(name)
        if generator is None or lease_id not in generator.unanswered:
            raise WireError(f"{name} answered lease {lease_id}, which it does not hold")
        generator.unanswered.remove(lease_id)
