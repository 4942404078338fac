"""Generators that come and go in a live run.

launcher ── Gone, Drain ──▶ replay ── Drained ──▶ launcher
asyncrl scale ── Scale ──▶ launcher ── Scaled, Failed ──▶ asyncrl scale
"""

from __future__ import annotations

from asyncrl.transport.messages.base import Message


class Gone(Message, frozen=True):
    """This generator's process has ended."""

    generator: str
    reason: str
    """Such as `failed: its process died`."""


class Drain(Message, frozen=True):
    """This generator is to leave: no new leases. Answered by Drained when it has none left."""

    generator: str


class Drained(Message, frozen=True):
    """This generator has nothing left to do."""

    generator: str


class Scale(Message, frozen=True):
    """Let the run have so many generators. Answered by Scaled or Failed."""

    num_generators: int


class Scaled(Message, frozen=True):
    """What will happen, for people."""

    text: str
