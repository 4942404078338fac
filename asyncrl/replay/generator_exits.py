"""Generators that leave: at once when they have died, otherwise after a drain.

Gone    its leases go back in line, each as a failed attempt
Drain   no new leases, no longer a member ──▶ no lease left, and a version published without it ──▶ Drained
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from asyncrl.ledger.commits import Send
from asyncrl.ledger.ledger import Ledger
from asyncrl.ledger.store import LedgerStore
from asyncrl.replay.evaluation import Evaluation
from asyncrl.replay.failed_prompts import FailedPrompts
from asyncrl.replay.membership import Membership
from asyncrl.transport.control_link import ControlLink
from asyncrl.transport.messages.scaling import Drain, Drained, Gone


@dataclass
class _Leaving:
    deadline_s: float
    is_published_past: bool = False
    """A version was published since: a publish that had begun with it is over."""


class GeneratorExits:
    """Carries out the launcher's orders.

    Args:
        timeout_s: the deadline of a drain. After it other generators get the leases that are left.
    """

    def __init__(
        self,
        ledger: Ledger,
        evaluation: Evaluation,
        membership: Membership,
        store: LedgerStore,
        failed_prompts: FailedPrompts,
        link: ControlLink,
        timeout_s: float,
        send_when_durable: Callable[[Send], None],
    ) -> None:
        self._ledger = ledger
        self._evaluation = evaluation
        self._membership = membership
        self._store = store
        self._failed_prompts = failed_prompts
        self._link = link
        self._timeout_s = timeout_s
        self._send_when_durable = send_when_durable
        self._leaving: dict[str, _Leaving] = {}

    def advance(self, now_s: float) -> None:
        """Carries out new orders. Ends the drains that are complete or late."""
        while not self._link.orders.empty():
            match self._link.orders.get():
                case Gone(generator, reason):
                    self._gone(generator, f"{generator} {reason}")
                case Drain(generator):
                    self._membership.drain(generator)
                    self._leaving[generator] = _Leaving(now_s + self._timeout_s)
        for name, leaving in list(self._leaving.items()):
            if (leaving.is_published_past and self._membership.is_idle(name)) or now_s > leaving.deadline_s:
                self._leave(name)

    def published(self) -> None:
        """A version was published."""
        for leaving in self._leaving.values():
            leaving.is_published_past = True

    def _gone(self, name: str, reason: str) -> None:
        """Its prompts need not wait for their leases to expire. Each may be the cause, so each counts a failure."""
        self._leaving.pop(name, None)
        self._membership.remove(name)
        self._store.set_generators(self._membership.credits)
        self._evaluation.generator_died(name)
        self._failed_prompts.generator_gone(name, reason, self._ledger.generator_died(name, reason))

    def _leave(self, name: str) -> None:
        del self._leaving[name]
        self._evaluation.release(name)
        released = self._ledger.release(name)
        if released:
            self._link.note(f"{name} leaves in the midst of {len(released)} prompts, which go to another")
        self._membership.remove(name)
        self._store.set_generators(self._membership.credits)
        self._send_when_durable(lambda: self._link.send(Drained(name)))
