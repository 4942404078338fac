"""What an environment is: a class of your own with two coroutines. docs/environments.md shows how to write one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

Observation = str | list[int] | list[dict[str, str]]
"""What the model reads next: text, which is tokenized as it stands; token ids; or messages (`role`, `content`), which
take the tokenizer's chat template. Never empty."""


@dataclass(frozen=True)
class Row:
    """What an episode is about. All episodes of a group have the same."""

    number: int
    """Row of the data, 0-based."""
    prompt: str
    answer: str
    seed: int
    """The only source of randomness that an environment should use."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """The other columns of the data, by name."""


@dataclass(frozen=True)
class Action:
    """What the policy sampled in one turn."""

    text: str
    """Without special tokens."""
    token_ids: list[int]
    """With EOS, where it was sampled."""


@dataclass(frozen=True)
class Step:
    """What an environment answers to an action."""

    observation: Observation | None = None
    """Needed unless `done`."""
    reward: float = 0.0
    """Of this turn. The reward of an episode is the sum over its turns; 1 or more counts as correct."""
    done: bool = False
    """The episode is over."""


def as_columns(text: str) -> Mapping[str, Any]:
    """What `Prompt.columns` holds as JSON."""
    columns: Mapping[str, Any] = json.loads(text) if text else {}
    return columns


class Environment(Protocol):
    """One episode. Made as `Class(**environment.args)` in a process of its own pool, never in the generator.

    The same row and actions must lead to the same observations: when another episode takes a process down, those
    beside it are played again in a new one.

    A third coroutine, `close()`, may let go of what an episode holds: it is called after the episode's last call,
    however it ended, unless its process was killed.
    """

    async def reset(self, row: Row) -> Observation | None:
        """Begins the episode. The answer takes the place of the row's prompt; None leaves that as it is.

        Every episode of a group must begin alike.
        """

    async def step(self, action: Action) -> Step:
        """One turn."""
