"""What has ended of a lease whose group has not: handed to replay once a second, and by it to the next holder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from asyncrl.errors import WireError
from asyncrl.transport.messages.rollouts import LeaseGrant
from asyncrl.transport.wire import FRAMES_PER_GROUP, Frame, group_from_wire
from asyncrl.types import Completion, Group


class Finished:
    """By position in the group; each as a group of one, with its text in `sample_text`.

    Args:
        kept: what earlier holders of the prompt had finished.
    """

    def __init__(self, kept: Mapping[int, Group] | None = None) -> None:
        self._groups = dict(kept or {})
        self._unsent: set[int] = set()

    def get(self, position: int) -> Group | None:
        """None: it is to be sampled."""
        return self._groups.get(position)

    def add(self, position: int, group: Group) -> None:
        """It has ended here."""
        self._groups[position] = group
        self._unsent.add(position)

    def take_unsent(self) -> list[tuple[int, Group]]:
        """What replay does not have yet."""
        positions, self._unsent = sorted(self._unsent), set()
        return [(position, self._groups[position]) for position in positions]

    def replay_is_new(self) -> None:
        """It has lost what it had."""
        self._unsent = set(self._groups)


def finished_before(grant: LeaseGrant, frames: Sequence[Frame]) -> Finished:
    """What came with a lease.

    Raises:
        WireError: the frames do not fit.
    """
    if len(frames) != FRAMES_PER_GROUP * len(grant.kept):
        raise WireError(f"lease {grant.lease_id}: {len(frames)} frames of {len(grant.kept)} completions")
    parts = [frames[first : first + FRAMES_PER_GROUP] for first in range(0, len(frames), FRAMES_PER_GROUP)]
    return Finished(
        {kept.position: group_from_wire(kept.header, part) for kept, part in zip(grant.kept, parts, strict=True)}
    )


def group_of_one(grant: LeaseGrant, completion: Completion) -> Group:
    """A completion that is not scored yet."""
    return Group(
        index=grant.index,
        row=grant.row,
        prompt_token_ids=np.asarray(grant.token_ids, np.int32),
        lengths=np.asarray([len(completion.token_ids)], np.int32),
        tokens=completion.token_ids,
        logprobs=completion.logprobs,
        versions=completion.versions,
        rewards=np.asarray([np.nan], np.float32),
        correct=np.asarray([False]),
        truncated=np.asarray([completion.finish_reason == "length"]),
        sample_text=completion.text,
        support_ids=completion.support_ids,
        support_sizes=completion.support_sizes,
    )


def completion_of(group: Group) -> Completion:
    """The completion of a group of one."""
    return Completion(
        token_ids=group.tokens,
        logprobs=group.logprobs,
        versions=group.versions,
        text=group.sample_text,
        finish_reason="length" if group.truncated[0] else "stop",
        support_ids=group.support_ids,
        support_sizes=group.support_sizes,
    )
