"""What each term of reward.terms is called in metrics and in the groups' scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from asyncrl.config.schema import RewardTerm


def reward_weights(terms: Sequence[RewardTerm]) -> dict[str, float]:
    """Label → weight, in order. The label is what stands behind the colon, or the whole name where that would not tell
    two apart; the same function twice is NAME and NAME#2."""
    names = [term.function for term in terms]
    short = [name.rpartition(":")[2] for name in names]
    labels = short if len(set(short)) == len(set(names)) else names
    seen: Counter[str] = Counter()
    weights = {}
    for label, term in zip(labels, terms, strict=True):
        seen[label] += 1
        weights[label if seen[label] == 1 else f"{label}#{seen[label]}"] = term.weight
    return weights
