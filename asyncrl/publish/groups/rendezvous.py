"""The store at which the members of a publish meet: workers leave their plans there, groups find their addresses.

It is a file, not a port. torch's TCPStore answers whoever connects: a stranger could read the plans and send the
workers to other addresses. A file in a folder that only the user can open has permissions instead.
"""

from __future__ import annotations

import secrets
import tempfile
from datetime import timedelta
from pathlib import Path

import msgspec
import torch
from torch.distributed import FileStore, PrefixStore

from asyncrl.config.checks.publish import PublishTransport
from asyncrl.errors import PublishError
from asyncrl.publish.groups.base import Group
from asyncrl.publish.groups.gloo import GlooGroup
from asyncrl.publish.groups.nccl import NcclGroup
from asyncrl.publish.plan import Slice


class Rendezvous:
    """One member's end of the store.

    Args:
        store_file: a file of this group alone, which every member sees.
        timeout_s: longest wait for another member, here and in each group.
    """

    def __init__(self, store_file: str, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._store = open_store(store_file, timeout_s)

    def announce(self, worker: int, slices: list[Slice]) -> None:
        """This worker is here, and what it keeps."""
        self._store.set(f"plan/{worker}", msgspec.msgpack.encode(slices))

    def plan(self, worker: int, who: str) -> list[Slice]:
        """What a worker keeps, once it has come.

        Raises:
            PublishError: it did not come in time.
        """
        try:
            encoded = self._store.get(f"plan/{worker}")
        except RuntimeError as error:
            raise PublishError(
                f"rendezvous: {who} did not come within {self._timeout_s:.0f} s (publish.timeout_s)"
            ) from error
        return msgspec.msgpack.decode(encoded, type=list[Slice])

    def group(self, transport: PublishTransport, device: torch.device, name: str, rank: int, world_size: int) -> Group:
        """This member's end of the group `name`.

        Args:
            device: as `device_of(transport)` gave it.
        """
        store = PrefixStore(name, self._store)
        if transport == "nccl":
            return NcclGroup(store, rank, world_size, device, self._timeout_s)
        return GlooGroup(store, rank, world_size, self._timeout_s)


def new_store_file(folder: Path | None) -> str:
    """A name of its own for each group: a file of an earlier one would count as this one's.

    Args:
        folder: None = a new one, for this machine alone.
    """
    folder = folder or Path(tempfile.mkdtemp(prefix="asyncrl-"))
    return str(folder / f"publish-{secrets.token_hex(8)}")


def open_store(file: str, timeout_s: float) -> FileStore:
    """Its waits end with a RuntimeError after the time limit."""
    store = FileStore(file)
    store.set_timeout(timedelta(seconds=timeout_s))
    return store
