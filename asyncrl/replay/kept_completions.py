"""Completions that have ended, of groups that have not: what the next holder of a prompt need not sample again.

In memory alone. A replay process that starts again has none of them, until generators hand them in again.
"""

from __future__ import annotations

from collections.abc import Sequence

from asyncrl.errors import WireError
from asyncrl.ledger.store import StoredGroup
from asyncrl.transport.messages.rollouts import CompletionDone, Kept
from asyncrl.transport.wire import Frame, check_group, sampled_versions


class KeptCompletions:
    """By admission index and by position in the group.

    Args:
        group_size: G.
    """

    def __init__(self, group_size: int) -> None:
        self._group_size = group_size
        self._kept: dict[int, dict[int, StoredGroup]] = {}
        self.num_handed_on = 0
        """Completions that went to another holder, so far."""

    def keep(self, index: int, done: CompletionDone, frames: Sequence[Frame]) -> None:
        """Keeps one completion of a prompt.

        Raises:
            WireError: it is none of that prompt's.
        """
        check_group(done.header, frames)
        if done.header.index != index or len(done.header.lengths) != 1 or not 0 <= done.position < self._group_size:
            raise WireError(f"no completion of prompt {index}: position {done.position} of {done.header.index}")
        self._kept.setdefault(index, {})[done.position] = StoredGroup(done.header, list(frames))

    def hand_on(self, index: int, oldest_version: int) -> tuple[list[Kept], list[Frame]]:
        """Those of a prompt that is leased, for the wire; those with a token of before `oldest_version` are dropped."""
        kept = {
            position: group
            for position, group in sorted(self._kept.pop(index, {}).items())
            if sampled_versions(group.header, group.frames).min() >= oldest_version
        }
        if kept:
            self._kept[index] = kept
            self.num_handed_on += len(kept)
        headers = [Kept(position, group.header) for position, group in kept.items()]
        return headers, [frame for group in kept.values() for frame in group.frames]

    def forget(self, index: int) -> None:
        """The prompt has come back or ended."""
        self._kept.pop(index, None)

    def __len__(self) -> int:
        return sum(map(len, self._kept.values()))
