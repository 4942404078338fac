"""Tells the console of a live run when another split of its devices should be much faster.

`asyncrl report` finds out, in a process of its own with the lowest priority, a few times a run. The launcher starts it
and takes its answer later, and waits for neither. What goes wrong there is a line in the launcher's log.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from asyncrl.watch.console import LiveView

log = logging.getLogger(__name__)

AFTER_STEPS = (30, 100, 300)
"""Of this launch."""
LIMIT_S = 900.0
"""An answer that takes longer is given up."""
NICENESS = 19


@dataclass(frozen=True)
class _Question:
    process: subprocess.Popen[bytes]
    output: IO[bytes]
    """Files, not pipes, which somebody would have to read."""
    errors: IO[bytes]
    deadline_s: float
    """time.monotonic."""


class SplitAdviser:
    """Asks in the background, says once what it hears, and again only when that has changed.

    Args:
        asks_at_all: else there can be no answer, and no process is started for one.
    """

    def __init__(self, run_dir: Path, view: LiveView, asks_at_all: bool) -> None:
        self.command = [sys.executable, "-P", "-m", "asyncrl", "report", str(run_dir), "--json"]
        self._view = view
        self._due = list(AFTER_STEPS) if asks_at_all else []
        self._question: _Question | None = None
        self._said: list[str] = []

    @property
    def asks(self) -> bool:
        """An answer is outstanding."""
        return self._question is not None

    def look(self, num_steps: int) -> None:
        """Takes an answer that has come; asks when it is time. Called at each step; takes milliseconds.

        Args:
            num_steps: of this launch whose rows are written.
        """
        if self._question is not None and self._has_ended(self._question):
            self._take(self._question)
            self.close()
        if self._question is None and self._due and num_steps >= self._due[0]:
            self._due = [step for step in self._due if step > num_steps]
            try:
                self._question = self._ask()
            except OSError as error:  # no memory, no room for a file: the run goes on
                log.warning("no advice on the split: %s", error)

    def close(self) -> None:
        """Ends what is under way."""
        if self._question is not None:
            self._question.process.kill()
            self._question.process.wait()
            self._question.output.close()
            self._question.errors.close()
            self._question = None

    def _ask(self) -> _Question:
        output, errors = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
        process = subprocess.Popen(
            self.command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, start_new_session=True
        )
        os.setpriority(os.PRIO_PROCESS, process.pid, NICENESS)
        return _Question(process, output, errors, time.monotonic() + LIMIT_S)

    def _has_ended(self, question: _Question) -> bool:
        if question.process.poll() is None and time.monotonic() > question.deadline_s:
            question.process.kill()
            question.process.wait()
        return question.process.returncode is not None

    def _take(self, question: _Question) -> None:
        if question.process.returncode:
            question.errors.seek(0)
            said = question.errors.read().decode(errors="replace")[-2000:]
            log.warning("no advice on the split: asyncrl report ended with %d: %s", question.process.returncode, said)
            return
        question.output.seek(0)
        try:
            advice = json.load(question.output)["split"]
        except ValueError as error:
            log.warning("no advice on the split: asyncrl report wrote no JSON: %s", error)
            return
        if advice["better"] is not None and advice["overrides"] != self._said:
            self._said = advice["overrides"]
            self._view.event(advice["better"])
