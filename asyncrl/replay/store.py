"""Where finished groups wait. The seam for durability: a store keeps payloads, the ledger keeps their life."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from asyncrl.transport.messages import GroupHeader
from asyncrl.transport.wire import Frame


@dataclass(frozen=True)
class StoredGroup:
    """A group as it came over the wire; it is not decoded on the way to the learner."""

    header: GroupHeader
    frames: list[Frame]


class GroupStore(Protocol):
    """A group that was put is there until it is removed; `put` returns only once that holds."""

    def put(self, index: int, group: StoredGroup) -> None: ...

    def get(self, index: int) -> StoredGroup: ...

    def remove(self, index: int) -> None: ...


class MemoryStore:
    """Groups in this process's memory; lost with it."""

    def __init__(self) -> None:
        self._groups: dict[int, StoredGroup] = {}

    def put(self, index: int, group: StoredGroup) -> None:
        self._groups[index] = group

    def get(self, index: int) -> StoredGroup:
        return self._groups[index]

    def remove(self, index: int) -> None:
        del self._groups[index]
