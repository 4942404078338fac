"""The controller of η: how far generation may run ahead, so that what is trained on stays useful. Pure.

The effective sample size of a step, e = (Σρ)² / (N·Σρ²) over its N trained tokens with ρ = π_θ/μ, is the share of
them that counts. If log ρ is normal with variance σ², −log e = σ². The controller holds −log e at or below
−log ess_target, by the rule that σ² grows in proportion to η + 1: by the same for each version that a token waits.

    D = −log of the median e of the last WINDOW steps         D* = −log ess_target

    D > D*               η + 1 falls by the factor D*/D
    D < MARGIN·D*        η + 1 grows by the factor MARGIN·D*/D, rounded down: often not at all
    between              η stays (the dead band)

No factor is above 2 or below 1/2. The median keeps one wild step from moving η. After a change, the steps that were
drawn under the old η are not judged: a controller that acts again while its first action is still in the queue swings.
Growth starts from min_staleness and can double, so η reaches 63 in about 100 steps where the data allow it.

If e is below the target even at η = min_staleness, staleness is not the cause: the two engines disagree, or the policy
moves far in one step. Then η stays at min_staleness.
"""

from __future__ import annotations

import math
import statistics

WINDOW = 5
"""Steps judged together; the median of five withstands two wild ones."""
MARGIN = 0.8
MAX_FACTOR = 2.0


class StalenessController:
    """Moves η within [min_staleness, max_staleness] by the effective sample sizes of the steps.

    Args:
        ess_target: in (0, 1).
        min_staleness: ≥ 0.
        max_staleness: ≥ min_staleness; the contract, which no η exceeds.
        eta: where a resumed run continues; None = min_staleness.
    """

    def __init__(self, *, ess_target: float, min_staleness: int, max_staleness: int, eta: int | None = None) -> None:
        self._max_variance = -math.log(ess_target)
        self._min_staleness, self._max_staleness = min_staleness, max_staleness
        self.eta = min_staleness if eta is None else min(max(eta, min_staleness), max_staleness)
        self._window: list[float] = []
        self._num_unsettled = self.eta + 1

    def observe(self, effective_sample_size: float) -> int:
        """One step was trained, with this effective sample size in [0, 1]. Returns η from now on."""
        if self._num_unsettled > 0:
            self._num_unsettled -= 1
            return self.eta
        self._window.append(effective_sample_size)
        if len(self._window) == WINDOW:
            self._decide(statistics.median(self._window))
        return self.eta

    def _decide(self, effective_sample_size: float) -> None:
        """Moves η, or judges the next step with the last WINDOW − 1."""
        variance = -math.log(effective_sample_size) if effective_sample_size > 0 else math.inf
        room = self._max_variance / max(variance, self._max_variance / MAX_FACTOR**2)
        factor = room if room < 1 else max(1.0, MARGIN * room)
        wanted = math.floor((self.eta + 1) * min(max(factor, 1 / MAX_FACTOR), MAX_FACTOR)) - 1
        eta = min(max(wanted, self._min_staleness), self._max_staleness)
        if eta == self.eta:
            self._window.pop(0)
            return
        self._num_unsettled = max(eta, self.eta) + 1
        self._window.clear()
        self.eta = eta
