"""What is kept of a prompt, and of a ledger as a whole, so that another process can go on with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Stragglers = Literal["wait", "mask", "requeue"]
"""What becomes of a prompt that comes back late: its batch waits for it; or batches come in order of completion, and
its tokens over the bound are masked by the learner, or it is sampled again."""

State = Literal["leased", "waiting", "queued", "batched", "trained", "filtered", "quarantined"]
"""waiting: to be leased again. batched: in a batch that the learner has, or had; trained: and in a checkpoint."""

IN_HAND: tuple[State, ...] = ("leased", "waiting", "queued", "batched", "quarantined")
"""What a ledger has in memory. The others are history."""


@dataclass(frozen=True)
class LeaseRecord:
    """One prompt at one generator."""

    lease_id: int
    index: int
    generator: str
    deadline_s: float
    """On the caller's clock."""


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
    """Whose batch it is in."""
    reason: str | None = None
    """Why it was quarantined."""
    first_version: int | None = None
    """That sampled its oldest token, from when it is queued."""


@dataclass(frozen=True)
class LedgerSnapshot:
    """A ledger between two transitions. By default one that has not begun."""

    next_step: int = 0
    """The first step whose batch has not been taken."""
    next_index: int = 0
    """Every admission index below has ended; a prompt in a batch counts as ended."""
    ended: list[int] = field(default_factory=list)
    """Indices above next_index that have ended."""
    drawn_to: int = 0
    """Every admission index below has been drawn."""
    records: list[PromptRecord] = field(default_factory=list)
    """Of the prompts in hand."""
    num_filtered: int = 0
    num_requeued: int = 0
    next_lease_id: int = 0
    served_version: int | None = None
    eta: int | None = None
    """η of admission; None = replay.max_staleness."""
    refill_end: int | None = None
