"""Learner rank 0 and a generator: the commands of a publish.

learner ── JoinGroup, LeaveGroup, Stage, Switch ──▶ generator ── Done, Failed ──▶ learner
"""

from __future__ import annotations

from typing import Any

from asyncrl.transport.messages.base import Message


class JoinGroup(Message, frozen=True):
    """Join a publish group (`Engine.join_group`), and leave the one before."""

    init_info: dict[str, Any]


class LeaveGroup(Message, frozen=True):
    """The group is broken: stop waiting for its transfers."""


class Stage(Message, frozen=True):
    """Receive weights beside those that serve. Answered at once; the weights come while the engine decodes."""


class Switch(Message, frozen=True):
    """Pause, take over the new weights (`Engine.update`), serve `version` with them, resume: one atomic step."""

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
