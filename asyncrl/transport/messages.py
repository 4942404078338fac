"""Every message that crosses a socket, as typed structures.

    generator ─ Hello, Serving, GroupDone, LeaseFailed ──▶ replay ── LeaseGrant, Ack ──▶ generator
    learner ── *Request, Published, Checkpointed ──▶ replay ── *Reply, Members, Newcomers, Ack ──▶ learner
    learner ── JoinGroup, LeaveGroup, Stage, Switch ──▶ generator ── Done, Failed ──▶ learner
    any role ── Status, StepRow, EvalRow, Note, Stacks ──▶ launcher ── Alive, DumpStacks, Stop ──▶ any role
    launcher ── Gone, Drain ──▶ replay ── Drained ──▶ launcher
    asyncrl scale ── Scale ──▶ launcher ── Scaled, Failed ──▶ asyncrl scale

Unknown fields and wrong types are refused by the decoder (msgspec), so a message is either whole and right or an error.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

MetricValue = float | str | list[float]


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """Base of all messages; the tag is the class name."""


class GroupHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A group without its arrays, which travel as four raw frames (see `group_codec`)."""

    index: int
    row: int
    num_prompt_tokens: int
    lengths: list[int]
    rewards: list[float]
    """NaN travels as NaN: a quarantined completion."""
    correct: list[bool]
    truncated: list[bool]
    sample_text: str


# ── generator ↔ replay ──


class Hello(Message, frozen=True):
    """A generator is up, or its connection to replay is up again."""

    control_endpoint: str
    """Where the learner reaches this generator's publish server."""
    tensor_parallel: int
    credit: int
    """Leases it can hold at once."""
    serves: bool = False
    """It has the learner's weights; else it waits for them."""
    held: list[int] = []
    """Ids of the leases that it has and replay has not acknowledged."""


class Serving(Message, frozen=True):
    """The generator has the learner's weights. Replay answers with LeaseGrants as admission permits."""


class LeaseGrant(Message, frozen=True):
    """A prompt to be sampled by this generator alone, until the deadline."""

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


class GroupDone(Message, frozen=True):
    """A finished group; four frames follow. Answered by Ack, once it is durable, which gives the credit back."""

    lease_id: int
    header: GroupHeader


class LeaseFailed(Message, frozen=True):
    """A lease that cannot be answered with a usable group. Answered by Ack."""

    lease_id: int
    reason: str


class Ack(Message, frozen=True):
    """The message about this lease (or version) was taken and will not be lost by its receiver."""

    ref: int


# ── learner ↔ replay ──


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
    """A generator is up and has no weights yet; unasked, to who publishes."""


class BatchRequest(Message, frozen=True):
    """The learner wants the batch of this step. Answered when B groups are there, and alike whenever it is asked
    again before a checkpoint contains it."""

    step: int
    effective_sample_size: float | None = None
    """Of the tokens trained in the step before; None when there were none."""


class BatchReply(Message, frozen=True):
    """B groups; four frames a group follow, in order."""

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


# ── learner → generator: publish ──


class JoinGroup(Message, frozen=True):
    """Join a publish group (vLLM's init_weight_transfer_engine), and leave the one before."""

    init_info: dict[str, Any]


class LeaveGroup(Message, frozen=True):
    """The group is broken: wait no longer for what was to come over it."""


class Stage(Message, frozen=True):
    """Receive weights beside those that serve. Done at once; they come while the engine decodes."""


class Switch(Message, frozen=True):
    """Pause, take over the new weights (vLLM's update_weights), serve `version` with them, resume: one atomic step."""

    version: int
    update_info: dict[str, Any]
    recompute_kv: bool


class Done(Message, frozen=True):
    """A publish command was carried out."""

    version: int
    """Served now."""
    stall_s: float = 0.0
    """How long generation stood still for it."""


class Failed(Message, frozen=True):
    """A command or request could not be carried out."""

    reason: str


# ── any role ↔ launcher ──


class Status(Message, frozen=True):
    """Heartbeat with the role's phase and its latest figures."""

    phase: str
    ready: bool
    """The role has come up."""
    metrics: dict[str, float]
    num_done: int
    """Pieces of work that this role has finished: groups, publishes. One more is progress."""


class StepRow(Message, frozen=True):
    """The figures of one learner step."""

    step: int
    metrics: dict[str, MetricValue]


class EvalRow(Message, frozen=True):
    """The figures of one evaluation."""

    version: int
    metrics: dict[str, MetricValue]


class Note(Message, frozen=True):
    """One line for people."""

    text: str


class Stacks(Message, frozen=True):
    """Where each thread of the role is: the answer to DumpStacks."""

    text: str


class Alive(Message, frozen=True):
    """The launcher's answer to a Status."""


class DumpStacks(Message, frozen=True):
    """Say where each of your threads is. Answered by Stacks."""


class Gone(Message, frozen=True):
    """This generator's process is no more."""

    generator: str
    reason: str
    """Such as `failed: its process died`."""


class Drain(Message, frozen=True):
    """This generator is to leave: no new leases. Answered by Drained when it has none left."""

    generator: str


class Drained(Message, frozen=True):
    """This generator has nothing left to do."""

    generator: str


class Stop(Message, frozen=True):
    """End cleanly."""

    reason: str


# ── asyncrl scale ↔ launcher ──


class Scale(Message, frozen=True):
    """Let the run have so many generators. Answered by Scaled or Failed."""

    num_generators: int


class Scaled(Message, frozen=True):
    """What will happen, for people."""

    text: str


Rollouts = Hello | Serving | LeaseGrant | GroupDone | LeaseFailed | Ack
Learning = (
    MembersRequest
    | Members
    | Newcomers
    | BatchRequest
    | BatchReply
    | Published
    | Checkpointed
    | EvalRequest
    | EvalReply
)
Publishing = JoinGroup | LeaveGroup | Stage | Switch | Done | Failed
Supervision = Status | StepRow | EvalRow | Note | Stacks | Alive | DumpStacks | Stop
Membership = Gone | Drain | Drained | Scale | Scaled
AnyMessage = Rollouts | Learning | Publishing | Supervision | Membership
