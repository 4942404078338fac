"""What replay does about failed prompts: what it reports, what it forgets, and the limit at which they end the run."""

from __future__ import annotations

from collections.abc import Callable

from asyncrl.config.schema import Config
from asyncrl.errors import FinalError
from asyncrl.ledger.ledger import Failure, Ledger
from asyncrl.ledger.records import LeaseRecord
from asyncrl.replay.kept_completions import KeptCompletions
from asyncrl.transport.control_link import ControlLink
from asyncrl.types import Prompt, row_name


class FailedPrompts:
    """Reports each failure. Ends the run when too many prompts are quarantined.

    Args:
        draw: admission index → training prompt.
        kept: what has ended of groups that have not.
    """

    def __init__(
        self,
        config: Config,
        draw: Callable[[int], Prompt],
        ledger: Ledger,
        kept: KeptCompletions,
        link: ControlLink,
    ) -> None:
        self._config = config
        self._draw = draw
        self._ledger = ledger
        self._kept = kept
        self._link = link
        self._refill_ran_out = False

    def prompt_failed(self, index: int, outcome: Failure, reason: str) -> None:
        """Reports one failure. Of a prompt that is quarantined nothing is kept.

        Raises:
            FinalError: more prompts are quarantined than replay.max_quarantined.
        """
        if outcome == "quarantined":
            self._kept.forget(index)
        name = self._name(index)
        self._link.note(f"prompt {index} ({name}) {outcome}: {reason}")
        num_quarantined, limit = len(self._ledger.quarantined), self._config.replay.max_quarantined
        if num_quarantined > limit:
            raise FinalError(
                f"{num_quarantined} prompts are quarantined, replay.max_quarantined={limit}; the last, {name}: {reason}"
            )

    def generator_gone(self, name: str, reason: str, lost: list[tuple[LeaseRecord, Failure]]) -> None:
        """Reports what happens to the prompts that a generator held.

        Raises:
            FinalError: as `prompt_failed`.
        """
        num_retried = sum(outcome == "retried" for _, outcome in lost)
        if num_retried:
            self._link.note(f"{num_retried} prompts of {name} go to the next free generator")
        for lease, outcome in lost:
            if outcome == "quarantined":
                self.prompt_failed(lease.index, outcome, reason)

    def refill_ran_out(self, index: int) -> None:
        """Reports once that groups of equal rewards now get places in batches."""
        if self._refill_ran_out:
            return
        self._refill_ran_out = True
        self._link.note(
            f"prompt {index} ({self._name(index)}) has equal rewards and yet a place in a batch: its step has "
            f"looked through {self._config.algorithm.max_refill_batches} batches of prompts "
            "(algorithm.max_refill_batches); how many groups of each batch are like that is in "
            "reward/zero_variance_fraction"
        )

    def _name(self, index: int) -> str:
        prompt = self._draw(index)
        return row_name(prompt.row, prompt.data_set)
