"""A full disk is one message with the run's folder, whichever of the launcher's threads met it first."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from asyncrl.errors import RunError


@contextmanager
def full_disk_is_named(run_dir: Path) -> Iterator[None]:
    """A thread that writes, such as TensorBoard's, prints no traceback meanwhile: its next caller gets the error.

    Raises:
        RunError: the disk is full.
    """
    earlier = threading.excepthook

    def hook(failure: threading.ExceptHookArgs) -> None:
        if not is_full_disk(failure.exc_value):
            earlier(failure)

    threading.excepthook = hook
    try:
        yield
    except OSError as error:
        if not is_full_disk(error):
            raise
        raise RunError(f"{run_dir}: {error.strerror}; make room, then go on with it: --resume {run_dir}") from error
    finally:
        threading.excepthook = earlier


def is_full_disk(error: BaseException | None) -> bool:
    """Or the user's part of it is."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
