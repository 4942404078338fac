"""Replay's counts of refused messages and unscored completions, and the figures of the queue."""

from __future__ import annotations

import numpy as np

from asyncrl.errors import FinalError
from asyncrl.ledger.ledger import Ledger
from asyncrl.transport.messages.rollouts import GroupHeader
from asyncrl.types import row_name


class ReplayCounters:
    """Counts of one run.

    Args:
        max_failures: completions without a reward before the run is stopped.
        num_unscored: the count so far, from earlier replay processes.
    """

    def __init__(self, max_failures: int, num_unscored: int = 0) -> None:
        self._max_failures = max_failures
        self.num_unscored = num_unscored
        self.num_refused = 0
        self.num_refused_peers = 0

    def count_unscored(self, header: GroupHeader) -> None:
        """Completions without a reward carry no gradient.

        Raises:
            FinalError: there have been more of them than reward.max_failures allows.
        """
        self.num_unscored += int(np.isnan(header.rewards).sum())
        if self.num_unscored > self._max_failures:
            raise FinalError(
                f"the reward function failed on {self.num_unscored} completions, reward.max_failures="
                f"{self._max_failures}; the last for {row_name(header.row, header.data_set)}; the generators' logs "
                "give each reason"
            )

    def metrics(self, ledger: Ledger) -> dict[str, float]:
        """`queue/*` as it stands now."""
        return {
            "queue/depth": float(ledger.num_queued),
            "queue/leased": float(ledger.leases.num_held),
            "queue/filtered": float(ledger.num_filtered),
            "queue/requeued": float(ledger.num_requeued),
            "queue/skipped": float(ledger.admission.num_skipped),
            "queue/quarantined": float(len(ledger.quarantined)),
            "queue/unscored_completions": float(self.num_unscored),
            "queue/messages_refused": float(self.num_refused),
            "queue/peers_refused": float(self.num_refused_peers),
        }
