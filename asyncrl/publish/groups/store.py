"""The store at which a publish group meets: a file, not a port.

torch's TCPStore answers whoever connects: a stranger could read the plans and send the workers to other addresses. A
file in a folder that only the user can open has permissions instead.
"""

from __future__ import annotations

import secrets
import tempfile
from datetime import timedelta
from pathlib import Path

from torch.distributed import FileStore


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
