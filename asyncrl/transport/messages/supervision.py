"""Every role and the launcher: heartbeats, figures, Stop.

any role ── Status, StepRow, EvalRow, Note, Stacks ──▶ launcher ── Alive, DumpStacks, Stop ──▶ any role
"""

from __future__ import annotations

from asyncrl.transport.messages.base import Message, MetricValue


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


class Stop(Message, frozen=True):
    """End cleanly."""

    reason: str
