"""What all messages share, and replay's answer to generators and learner alike.

Each message is a typed structure; the decoder refuses unknown fields and wrong types.
"""

from __future__ import annotations

import msgspec

MetricValue = float | str | list[float]


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """Base of all messages; the tag is the class name."""


class Ack(Message, frozen=True):
    """Replay has the message about this lease, version or step, and will not lose it."""

    ref: int
