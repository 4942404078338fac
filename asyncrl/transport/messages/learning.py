"""The learner and replay: batches, versions, checkpoints, evaluations.

learner ── *Request, Published, Checkpointed ──▶ replay ── *Reply, Members, Newcomers, Ack ──▶ learner
"""

from __future__ import annotations

import msgspec

from asyncrl.transport.messages.base import Message
from asyncrl.transport.messages.rollouts import GroupHeader


class MembersRequest(Message, frozen=True):
    """Which generators have said hello?"""


class Member(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One generator, as the publish session needs it."""

    name: str
    control_endpoint: str
    tensor_parallel: int


class Members(Message, frozen=True):
    """The generators that have said hello, in order of their names."""

    members: list[Member]
    next_step: int
    """The first step whose batch has not been taken."""


class Newcomers(Message, frozen=True):
    """A generator is up and has no weights yet. Sent unasked to the client that publishes."""


class BatchRequest(Message, frozen=True):
    """The learner wants the batch of this step. Answered when B groups are there. A repeated request gets the same
    batch, until a checkpoint contains it."""

    step: int
    effective_sample_size: float | None = None
    """Of the tokens trained in the step before; None when there were none."""


class BatchReply(Message, frozen=True):
    """B groups; their frames follow, in order."""

    step: int
    headers: list[GroupHeader]
    next_step: int
    """The first step whose batch has not been taken: step + 1, or later when the learner retraces its steps."""
    queue_depth: int
    """Groups that stay in the queue."""
    eta: int
    """η of admission when the batch was handed out."""


class Published(Message, frozen=True):
    """Every generator serves this version whole. Opens admission. Answered by Ack."""

    version: int


class Checkpointed(Message, frozen=True):
    """The checkpoint after so many steps is whole. Their batches need not be kept. Answered by Ack."""

    step: int


class EvalRequest(Message, frozen=True):
    """Evaluate the held-out prompts. Answered by EvalReply when all are done."""

    version: int


class EvalReply(Message, frozen=True):
    """The result of an evaluation."""

    version: int
    metrics: dict[str, float]
    sample_text: str
