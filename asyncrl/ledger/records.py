"""The records of leases and prompts, and the snapshot from which another process continues a ledger."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Stragglers = Literal["wait", "window", "mask", "requeue"]
"""What happens to a prompt that comes back late. wait: its batch waits for it. window: so many later prompts may be
trained before it, then batches wait for it. With mask and requeue, batches come in order of completion. mask: the
learner masks its tokens over the bound. requeue: it is sampled again."""

State = Literal["leased", "waiting", "queued", "batched", "trained", "filtered", "quarantined", "skipped"]
"""waiting: to be leased again. batched: in a batch that was handed out. trained: a checkpoint contains that batch.
skipped: drawn, and passed over by the curriculum."""

IN_HAND: tuple[State, ...] = ("leased", "waiting", "queued", "batched", "quarantined")
"""The states of prompts that a ledger keeps in memory. The others are history."""


@dataclass(frozen=True)
class LeaseRecord:
    """One prompt at one generator."""

    lease_id: int
    index: int
    generator: str
    deadline_s: float
    """On the caller's clock."""

    @property
    def why_late(self) -> str:
        """The reason of its failure once the deadline has passed."""
        return f"{self.generator} did not answer in time"


@dataclass(frozen=True)
class PromptRecord:
    """Where one prompt stands."""

    index: int
    """Admission index."""
    state: State
    num_failures: int = 0
    generator: str | None = None
    """While it is leased."""
    lease_id: int | None = None
    place: int | None = None
    """0, 1, 2, … in order of completion, while it is queued."""
    step: int | None = None
    """The step whose batch it is in; of a filtered prompt the step that was being filled."""
    reason: str | None = None
    """Why it was quarantined."""
    first_version: int | None = None
    """The version that sampled its oldest token; set once it is queued."""
    solved: float | None = None
    """Share of its scored completions that are correct; set once it came back with one."""


@dataclass(frozen=True)
class LedgerSnapshot:
    """A ledger between two transitions. By default one that has not begun."""

    next_step: int = 0
    """The first step whose batch has not been taken."""
    next_index: int = 0
    """Every admission index below has ended; a prompt in a batch counts as ended."""
    ended: list[int] = field(default_factory=list)
    """Indices above next_index that have ended."""
    placed: list[int] = field(default_factory=list)
    """Those of them that are in a batch."""
    drawn_to: int = 0
    """Every admission index below has been drawn or skipped."""
    records: list[PromptRecord] = field(default_factory=list)
    """The prompts in hand."""
    num_filtered: int = 0
    num_requeued: int = 0
    num_skipped: int = 0
    next_lease_id: int = 0
    served_version: int | None = None
    eta: int | None = None
    """η of admission; None = replay.max_staleness."""
    refill_end: int | None = None
