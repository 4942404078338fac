"""Generators and replay: leases go out, groups come back.

generator ─ Hello, Serving, CompletionDone, GroupDone, LeaseFailed ──▶ replay ── LeaseGrant, Ack ──▶ generator
"""

from __future__ import annotations

from typing import Literal

import msgspec

from asyncrl.transport.messages.base import Message


class GroupHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A group without its arrays, which travel as raw frames (see `wire.py`).

    The ledger keeps headers: a field that is added needs a default, with which the headers of older runs are read.
    """

    index: int
    row: int
    num_prompt_tokens: int
    lengths: list[int]
    rewards: list[float]
    """NaN travels as NaN: a quarantined completion."""
    correct: list[bool]
    truncated: list[bool]
    sample_text: str
    spans: list[list[int]] = msgspec.field(default_factory=list)
    """As in `types.Group`."""
    turn_rewards: list[list[float]] = msgspec.field(default_factory=list)
    environment_s: float = 0.0
    term_means: dict[str, float] = msgspec.field(default_factory=dict)
    """Only in headers from before `term_scores`; not read."""
    data_set: str = ""
    term_scores: dict[str, list[float]] = msgspec.field(default_factory=dict)
    engine: str = ""


class Hello(Message, frozen=True):
    """A generator is up, or its connection to replay is up again."""

    control_endpoint: str
    """Where the learner reaches this generator's publish server."""
    tensor_parallel: int
    credit: int
    """Leases it can hold at once."""
    serves: bool = False
    """It has the learner's weights; else it waits for them."""
    held: list[int] = msgspec.field(default_factory=list)
    """Ids of the leases that it has and replay has not acknowledged."""


class Serving(Message, frozen=True):
    """The generator has the learner's weights. Replay answers with LeaseGrants as admission permits."""


class Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A completion that an earlier holder of the prompt had finished, as a group of one."""

    position: int
    """In the group."""
    header: GroupHeader


class LeaseGrant(Message, frozen=True):
    """A prompt to be sampled by this generator alone, until the deadline. The frames of the kept completions follow."""

    lease_id: int
    index: int
    """Admission index for train; position in the evaluation data for eval."""
    kind: Literal["train", "eval"]
    row: int
    token_ids: list[int]
    text: str
    answer: str
    num_samples: int
    temperature: float
    seed: int
    timeout_s: float
    columns: str = ""
    """Further values of the row that the rewards take by name, as a JSON object (`Prompt.columns`)."""
    data_set: str = ""
    """As in `types.Prompt`."""
    kept: list[Kept] = msgspec.field(default_factory=list)
    """These need not be sampled again."""


class CompletionDone(Message, frozen=True):
    """A completion of a group that has not ended yet; its frames follow. Not answered: what is lost, is resampled."""

    lease_id: int
    position: int
    header: GroupHeader
    """Of a group of one."""


class GroupDone(Message, frozen=True):
    """A finished group; its frames follow. Answered by Ack, once it is durable, which gives the credit back."""

    lease_id: int
    header: GroupHeader


class LeaseFailed(Message, frozen=True):
    """A lease that cannot be answered with a usable group. Answered by Ack."""

    lease_id: int
    reason: str
