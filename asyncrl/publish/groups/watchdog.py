"""A deadline for calls that may never return by themselves."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

POLL_S = 0.05
"""A late call is noticed this much later at most."""


class Watchdog:
    """Frees a call that is late, from a thread of its own.

    Args:
        timeout_s: longest time that a guarded call may take.
        abort: makes the guarded call return or raise; called once, from any thread.
    """

    def __init__(self, timeout_s: float, abort: Callable[[], None]) -> None:
        self._timeout_s = timeout_s
        self._abort = abort
        self._late_at_s = math.inf
        self._reason = ""
        """Why it was aborted; empty = it was not."""
        self._aborting = threading.Lock()
        self._ended = threading.Event()
        threading.Thread(target=self._watch, name="publish-watchdog", daemon=True).start()

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Around one call, in one thread at a time.

        Raises:
            RuntimeError: it was late, or the communicator was aborted before or meanwhile: what came of it is nothing.
        """
        self._raise_if_aborted(None)
        self._late_at_s = time.monotonic() + self._timeout_s
        try:
            yield
        except RuntimeError as error:
            self._raise_if_aborted(error)
            raise
        finally:
            self._late_at_s = math.inf
        self._raise_if_aborted(None)

    def abort(self, reason: str) -> None:
        with self._aborting:
            if self._reason:
                return
            self._reason = reason
        self._ended.set()
        self._abort()

    def _raise_if_aborted(self, cause: RuntimeError | None) -> None:
        if self._reason:
            raise RuntimeError(self._reason) from cause

    def _watch(self) -> None:
        while not self._ended.wait(POLL_S):
            if time.monotonic() > self._late_at_s:
                self.abort(f"no progress for {self._timeout_s:.0f} s (publish.timeout_s)")
