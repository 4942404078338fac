"""What k answers to a prompt are worth, and how sure a mean over prompts is. Pure.

pass@k    the chance that one of k answers at least is correct. Unbiased from n ≥ k answers, c of them correct:
          1 − C(n − c, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374)
maj@k     the chance that the answer most given among k is correct (Wang et al. 2022, arXiv 2203.11171). Unbiased
          too: the mean over the ⌊n/k⌋ separate lots of k answers, in the order in which they were sampled
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

ROUNDING = 1e-12
"""Equal values differ from their mean by less, as a share of it."""
Z_95 = 1.959964
"""Of the normal distribution, 97.5 % lies below it."""


@dataclass(frozen=True)
class Estimate:
    """A mean over prompts, with its 95 % confidence interval."""

    value: float
    low: float
    high: float


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """pass@k of one prompt. 1 ≤ k ≤ num_samples."""
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def majority_at_k(answers: Sequence[Hashable | None], correct: Sequence[bool], k: int) -> float:
    """maj@k of one prompt.

    Answers that are most given equally often share the vote. An answer that was scored in two ways, such as for its
    form, is worth its mean.

    Args:
        answers: [n] final answers, n ≥ k; None states none and has no vote.
        correct: [n]
        k: ≥ 1.
    """
    num_lots = len(answers) // k
    lots = [slice(lot * k, (lot + 1) * k) for lot in range(num_lots)]
    return sum(_vote(answers[lot], correct[lot]) for lot in lots) / num_lots


def _vote(answers: Sequence[Hashable | None], correct: Sequence[bool]) -> float:
    by_answer: dict[Hashable, list[bool]] = {}
    for answer, is_correct in zip(answers, correct, strict=True):
        if answer is not None:
            by_answer.setdefault(answer, []).append(is_correct)
    if not by_answer:
        return 0.0
    most = max(map(len, by_answer.values()))
    shares = [sum(votes) / most for votes in by_answer.values() if len(votes) == most]
    return sum(shares) / len(shares)


def mean_with_interval(values: Sequence[float]) -> Estimate:
    """The mean of one value in [0, 1] a prompt, with Wilson's interval (1927) for an effective number of prompts.

    The prompts are the sample; the answers to one prompt depend on each other. Values that are 0 or 1 give the
    textbook's interval for n prompts. Values in between vary less; p(1 − p) / s² is then the number of 0 or 1 draws
    whose mean varies as much (Kish's design effect). Without any variance it stays n, so the interval never vanishes.

    Args:
        values: [n], n ≥ 1.
    """
    num_prompts = len(values)
    mean = math.fsum(values) / num_prompts
    variance = math.fsum((value - mean) ** 2 for value in values) / num_prompts
    share = 1 / num_prompts  # one ÷ the effective number of prompts, which may be too large for a float
    if variance > (ROUNDING * mean) ** 2:
        share = variance / (num_prompts * mean * (1 - mean))
    z_squared = Z_95**2
    centre = (mean + z_squared * share / 2) / (1 + z_squared * share)
    spread = mean * (1 - mean) * share + z_squared * share**2 / 4
    half = Z_95 * math.sqrt(spread) / (1 + z_squared * share)
    return Estimate(mean, min(mean, max(0.0, centre - half)), max(mean, min(1.0, centre + half)))
