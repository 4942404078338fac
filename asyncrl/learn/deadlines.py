"""How long learner ranks wait for each other."""

from __future__ import annotations

RANK_MARGIN_S = 60.0
"""Ranks wait for each other this much longer than rank 0 may wait for a publish, an evaluation and a batch (each at
most run.step_timeout_s), so that rank 0's error comes first."""


def rank_timeout_s(step_timeout_s: float) -> float:
    return 3 * step_timeout_s + RANK_MARGIN_S
