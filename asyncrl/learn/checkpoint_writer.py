"""Checkpoints that are written while training goes on, one at a time.

Consumes   what a rank holds after a step, copied when `begin` is called.
Produces   a whole checkpoint, and once it is on disk its step, for the ledger.
Waits for  the checkpoint before, at most run.step_timeout_s.
Unblocked  by the disk and the other ranks' threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

import torch.distributed as dist

from asyncrl.errors import DeadlineError
from asyncrl.learn.checkpoint import begin_save
from asyncrl.learn.rank_groups import rank_group
from asyncrl.learn.update.step import Learner
from asyncrl.run.metrics import Row
from asyncrl.run.trainer_state import TrainerState


class CheckpointWriter:
    """Of one rank. Collective to make: the threads that write talk over a group of their own."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._group = rank_group(range(dist.get_world_size()), timeout_s, "gloo")
        self._step = 0
        self._saving: Future[None] | None = None

    def begin(self, directory: Path, learner: Learner, state: TrainerState, rows: Sequence[Row]) -> None:
        """Copy and write on in the background. The one before must have been asked for (`wait`). Collective.

        Raises:
            FinalError: it cannot be written.
        """
        assert self._saving is None
        self._step = state.step
        self._saving = begin_save(directory, learner, state, rows, self._group)

    def written(self) -> int | None:
        """The step of a checkpoint that has become whole since this was asked last.

        Raises:
            FinalError: it could not be written.
        """
        return self.wait() if self._saving is not None and self._saving.done() else None

    def wait(self) -> int | None:
        """Until the checkpoint that is being written is whole. Its step; None when there is none.

        Raises:
            FinalError: it could not be written.
            DeadlineError: it is not whole in time.
        """
        if self._saving is None:
            return None
        try:
            self._saving.result(self._timeout_s)
        except TimeoutError as error:
            waited_for = f"the checkpoint of step {self._step} to be whole"
            raise DeadlineError(waited_for, self._timeout_s, "the disk, or another learner rank") from error
        self._saving = None
        return self._step
