"""Learner rank 0 publishes in a thread, so that training does not wait for generators.

    main thread    gather v ─▶ hand over ─▶ train on the next batch ───────────▶ wait for v ─▶ gather v + 1 ─▶ …
    this thread                 └─▶ transfer, switch, Published(v) to replay ───┘ ─▶ newcomers …

A transport whose collectives must not run beside those of training (NCCL, on the same GPU) has the main thread wait for
each publish, and lets newcomers in while the main thread waits for something else.

Consumes   one version at a time, as whole tensors that nobody changes; Newcomers from replay.
Produces   the version in every generator, replay's note of it, and after that, where it is due, its evaluation.
Waits for  the next version; what `publisher.py` says of a publish. Whoever waits for it: at most run.step_timeout_s.
Unblocked  by the main thread, the generators and replay. What fails here is raised in the main thread, whose waits look
           here several times a second.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from dataclasses import dataclass
from typing import Literal

import torch

from asyncrl.errors import DeadlineError, RunStopping
from asyncrl.learn.publisher import Publisher
from asyncrl.transport.control_link import ControlLink

log = logging.getLogger(__name__)

POLL_S = 0.2


@dataclass(frozen=True)
class _Job:
    version: int
    tensors: dict[str, torch.Tensor]
    evaluate: bool


class PublishThread:
    """Owns the publisher and its sockets from here on.

    Args:
        timeout_s: longest wait of the main thread for a version.
        beside_training: the main thread may train while this one publishes.
    """

    def __init__(self, publisher: Publisher, link: ControlLink, timeout_s: float, beside_training: bool) -> None:
        self._publisher = publisher
        self._link = link
        self._timeout_s = timeout_s
        self._beside_training = beside_training
        self._jobs: queue.SimpleQueue[_Job | Literal["welcome"] | None] = queue.SimpleQueue()
        self._waited_for = ""
        self._idle = threading.Event()
        self._idle.set()
        self._welcoming = threading.Lock()
        """Held while newcomers are sent the version that is served."""
        self._failure: Exception | None = None
        self.figures: dict[str, float] = {}
        """Of the last version that was published: see `PublishSession.send`."""
        self._thread = threading.Thread(target=self._run, name="publish", daemon=True)
        self._thread.start()

    def publish(self, version: int, tensors: dict[str, torch.Tensor], evaluate: bool) -> None:
        """Hands a version over; the one before has been waited for. Returns at once, if training may go on meanwhile.

        Args:
            evaluate: ask for its evaluation once it is served.
        """
        assert self._idle.is_set(), "a version is handed over while another is published"
        self._idle.clear()
        self._waited_for = f"the publish of version {version}"
        self._jobs.put(_Job(version, tensors, evaluate))
        if not self._beside_training:
            self.wait()

    def take_back(self) -> dict[str, torch.Tensor]:
        """The tensors of the version that is served, for the caller to write over. Newcomers wait for the next version.

        Empty where the tensors are still needed: newcomers are being sent them just now, or deltas are made of them.
        """
        if not self._idle.is_set() or not self._welcoming.acquire(blocking=False):
            return {}
        try:
            return self._publisher.take_back()
        finally:
            self._welcoming.release()

    def wait(self) -> None:
        """Until what was handed over is served everywhere, or the run is stopping.

        Raises:
            DeadlineError: it was not in time.
            whatever failed in the thread.
        """
        deadline_s = time.monotonic() + self._timeout_s
        while self._thread.is_alive() and not self._idle.wait(POLL_S):
            self._link.phase(self._publisher.phase or self._waited_for)
            if time.monotonic() > deadline_s:
                who = f"the generators (phase: {self._publisher.phase})"
                raise DeadlineError(self._waited_for, self._timeout_s, who)
        self._raise_failure()

    def check(self, phase: str) -> None:
        """While the main thread waits for something else, in this phase: raises what failed in the thread."""
        self._raise_failure()
        if not self._beside_training and self._idle.is_set():
            self._idle.clear()
            self._waited_for = "newcomers to join"
            self._jobs.put("welcome")
            self.wait()
        mine = self._publisher.phase
        self._link.phase(f"{phase}; {mine}" if mine else phase)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Waits for what was handed over; then the thread and its sockets end."""
        self.wait()
        self._jobs.put(None)
        self._thread.join(self._timeout_s)

    def _run(self) -> None:
        try:
            self._serve()
        except RunStopping:
            log.info("stopping: %s", self._link.stop_reason)
        except Exception as error:  # noqa: BLE001 - the main thread raises it
            self._failure = error
        self._publisher.close()

    def _serve(self) -> None:
        while True:
            try:
                job = self._jobs.get(timeout=POLL_S)
            except queue.Empty:
                if self._beside_training:
                    self._welcome()
                continue
            if job is None:
                return
            if isinstance(job, _Job):
                self.figures = self._publisher.publish(job.version, job.tensors, job.evaluate)
            else:
                self._welcome()
            self._idle.set()

    def _welcome(self) -> None:
        with self._welcoming:
            self._publisher.welcome_newcomers()
