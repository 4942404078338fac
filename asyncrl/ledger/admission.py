"""Admission: whether another prompt may be drawn under the staleness bound, and which one it is. Pure."""

from __future__ import annotations

from asyncrl.errors import RunError
from asyncrl.ledger.curriculum import Curriculum
from asyncrl.ledger.records import LedgerSnapshot
from asyncrl.ledger.staleness_bound import admission_limit

MAX_SKIPPED_BATCHES = 10
"""What a curriculum skips for one prompt that is drawn is one transaction."""


class Admission:
    """Draws prompts in order, 0, 1, 2, …, while the bound leaves room.

    Args:
        batch_size: B.
        max_staleness: η; `eta` may be set lower later.
        num_steps: the run's length; num_steps·B prompts are drawn, and one for each that is dropped.
        window: how many prompts may be trained before one that was drawn before them.
        curriculum: says which draws are skipped; None = none.
        snapshot: where an earlier ledger stood.
    """

    def __init__(
        self,
        batch_size: int,
        max_staleness: int,
        num_steps: int,
        window: int,
        curriculum: Curriculum | None,
        snapshot: LedgerSnapshot,
    ) -> None:
        self._batch_size = batch_size
        self._num_steps = num_steps
        self._window = window
        self._curriculum = curriculum
        self.eta = max_staleness if snapshot.eta is None else min(snapshot.eta, max_staleness)
        """η of the prompts drawn from now on. Lowered, it closes admission until the version has caught up."""
        self.served_version = snapshot.served_version
        """None: admission is closed until the first publish."""
        self.drawn_to = snapshot.drawn_to
        """Every index below has been drawn or skipped."""
        self.num_skipped = snapshot.num_skipped

    def draw(self, num_drawn: int) -> tuple[list[int], int | None]:
        """Draws a prompt: the indices that the curriculum skips before it, and its own; None while none may be drawn.

        Args:
            num_drawn: prompts drawn so far and not dropped.
        """
        if not self._is_open(num_drawn):
            return [], None
        skipped = [] if self._curriculum is None else self._skipped(self._curriculum)
        index = self.drawn_to
        if self._curriculum is not None:
            self._curriculum.drawn(index)
        self.drawn_to += 1
        return skipped, index

    def _is_open(self, num_drawn: int) -> bool:
        if self.served_version is None:
            return False
        limit = admission_limit(self.served_version, self.eta, self._batch_size, self._window)
        return num_drawn < min(limit, self._num_steps * self._batch_size)

    def _skipped(self, curriculum: Curriculum) -> list[int]:
        skipped: list[int] = []
        while len(skipped) < MAX_SKIPPED_BATCHES * self._batch_size and curriculum.skips(self.drawn_to):
            curriculum.skipped(self.drawn_to)
            skipped.append(self.drawn_to)
            self.drawn_to += 1
        self.num_skipped += len(skipped)
        return skipped

    def published(self, version: int) -> None:
        """Every generator serves `version` whole.

        Raises:
            RunError: versions went backwards.
        """
        if self.served_version is not None and version < self.served_version:
            raise RunError(f"published version {version} after version {self.served_version}")
        self.served_version = version

    def close(self) -> None:
        """No version is served: nothing is drawn until the next publish."""
        self.served_version = None
