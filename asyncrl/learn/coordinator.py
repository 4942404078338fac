"""What learner rank 0 does for all ranks: it talks to replay, publishes versions and waits for evaluations.

`Rank0` does these things. Every other rank has a plain `Coordinator`, which does none of them, so that the loop of a
rank (`worker.py`) reads the same on all. Where ranks must agree on an answer, the loop broadcasts rank 0's.

Consumes   batches, members and evaluations from replay.
Produces   versions for the publish thread; news of versions and checkpoints for replay; rows for the launcher.
Waits for  replay (run.step_timeout_s for a batch or an evaluation, run.startup_timeout_s for the generators) and the
           publish before (run.step_timeout_s).
Unblocked  by replay, the generators, and the launcher's Stop, which ends every wait here.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial

import torch

from asyncrl.config.schema import Config
from asyncrl.errors import RunStopping
from asyncrl.learn.publish_thread import PublishThread
from asyncrl.replay.learner_client import LearnerClient
from asyncrl.transport.control_link import ControlLink
from asyncrl.transport.messages.base import MetricValue
from asyncrl.transport.messages.learning import BatchReply
from asyncrl.transport.messages.supervision import StepRow
from asyncrl.transport.wire import Frame

log = logging.getLogger(__name__)

STOPPING = -1
"""Instead of a step: the run is to end."""


class Coordinator:
    """What the loop of a rank asks for. This one does nothing, for every rank but 0: rank 0 answers for it."""

    publishes = False
    """This rank keeps the whole tensors that a publish gathers."""

    def next_step(self) -> int:
        """The first step whose batch has not been taken, or STOPPING."""
        return STOPPING

    def wait_for_generators(self, num_generators: int) -> bool:
        """Until so many have come up. False: the run is stopping."""
        return False

    def batch(self, step: int, effective_sample_size: float | None) -> tuple[BatchReply, Sequence[Frame]] | None:
        """The batch of this step as replay sends it, or None to stop."""
        return None

    def publish(self, version: int, tensors: dict[str, torch.Tensor], evaluate: bool) -> None:
        """Hands a version to the publish thread, which must be idle. `evaluate` asks for its evaluation."""

    def wait_for_publish(self) -> None:
        """Until every generator serves the version that was handed over last, or the run is stopping."""

    def take_back(self) -> dict[str, torch.Tensor]:
        """Waits as `wait_for_publish`. Then the tensors of that version, to be written over with the next.

        Empty where they are still needed.
        """
        return {}

    def publish_figures(self) -> dict[str, float]:
        """Of the last version that was published."""
        return {}

    def evaluate(self, version: int) -> None:
        """Waits for the evaluation, so that it sees one policy alone."""

    def checkpointed(self, step: int) -> None:
        """The checkpoint after `step` steps is whole."""

    def report(self, step: int, figures: dict[str, MetricValue]) -> None:
        """One step's row, for the launcher."""

    def note(self, text: str) -> None:
        """One line for people."""

    def close(self) -> None:
        """After the last publish; the thread and the sockets end."""


class Rank0(Coordinator):
    """The one that does these things.

    Args:
        replay: of the main thread; the publish thread has one of its own.
    """

    publishes = True

    def __init__(self, config: Config, replay: LearnerClient, publish_thread: PublishThread, link: ControlLink) -> None:
        self._config = config
        self._replay = replay
        self._publish_thread = publish_thread
        self._link = link

    def next_step(self) -> int:
        try:
            return self._replay.members(self._config.run.startup_timeout_s).next_step
        except RunStopping:
            return STOPPING

    def wait_for_generators(self, num_generators: int) -> bool:
        self._link.phase("waiting for the generators")
        try:
            self._replay.wait_for_generators(num_generators, self._config.run.startup_timeout_s)
        except RunStopping:
            return False
        return True

    def batch(self, step: int, effective_sample_size: float | None) -> tuple[BatchReply, Sequence[Frame]] | None:
        if self._link.stopping.is_set():
            return None
        self._watch_publish(f"waiting for the batch of step {step}")
        try:
            return self._replay.batch(step, self._config.run.step_timeout_s, effective_sample_size)
        except RunStopping:
            log.info("stopping: %s", self._link.stop_reason)
            return None

    def publish(self, version: int, tensors: dict[str, torch.Tensor], evaluate: bool) -> None:
        self._publish_thread.publish(version, tensors, evaluate)

    def wait_for_publish(self) -> None:
        self._publish_thread.wait()

    def take_back(self) -> dict[str, torch.Tensor]:
        self._publish_thread.wait()
        return self._publish_thread.take_back()

    def publish_figures(self) -> dict[str, float]:
        return self._publish_thread.figures

    def evaluate(self, version: int) -> None:
        self._watch_publish(f"evaluating version {version}")
        self._replay.request_evaluation(version)
        try:
            self._replay.wait_for_evaluation(version, self._config.run.step_timeout_s)
        except RunStopping:
            log.info("stopping: %s", self._link.stop_reason)

    def checkpointed(self, step: int) -> None:
        try:
            self._replay.checkpointed(step, self._config.publish.timeout_s)
        except RunStopping:
            log.info("stopping; replay learns of the checkpoint when the run goes on")

    def report(self, step: int, figures: dict[str, MetricValue]) -> None:
        self._link.send(StepRow(step, figures))

    def note(self, text: str) -> None:
        self._link.note(text)

    def close(self) -> None:
        self._publish_thread.close()
        self._replay.close()

    def _watch_publish(self, phase: str) -> None:
        """A publish that fails ends the wait for replay; until then its phase is shown beside ours."""
        self._link.phase(phase)
        self._replay.while_waiting = partial(self._publish_thread.check, phase)
