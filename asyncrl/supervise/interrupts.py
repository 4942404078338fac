"""Ctrl-C once asks for a clean stop. Twice raises KeyboardInterrupt wherever the launcher is: the run ends at once.

SIGTERM counts as Ctrl-C. So does SIGHUP, when the terminal is gone, unless it is ignored (nohup).
"""

from __future__ import annotations

import os
import signal
import stat
from types import FrameType, TracebackType
from typing import Any


class Interrupts:
    """Counts SIGINT, SIGTERM and SIGHUP inside its `with` block, and restores the earlier handlers after it."""

    def __init__(self) -> None:
        self.count = 0
        self._earlier: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:
                self._earlier[number] = signal.signal(number, self._take)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if number == signal.SIGHUP:
            _leave_the_terminal()
        if self.count > 1:
            raise KeyboardInterrupt


def _leave_the_terminal() -> None:
    """It is gone: whatever is written to it from here on would be an error, and end the run without a checkpoint."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        if stat.S_ISCHR(os.fstat(descriptor).st_mode):  # a terminal that is gone does not say that it is one
            os.dup2(nowhere, descriptor)
    os.close(nowhere)
