"""The quickstart task: adding a one-digit number and one of at most two digits. `7+25=` is answered by `32`.

What the tiny model is warmed up on stands in for a careless pretraining corpus: most of its carries are forgotten
(`7+25=22`). So the model knows addition, but rarely carries, and that is what reinforcement learning then teaches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

NUM_TEST_ROWS = 256
"""Held-out sums: at 50 % accuracy one standard error is 3 points."""

_FORGOTTEN_CARRIES = 0.8
"""Share of the corpus's carries. With 1 a carry is never sampled, hence never rewarded; with 0 the warm-up itself
teaches nearly all there is to learn."""


def arithmetic_rows(split: Literal["train", "test"], seed: int) -> list[tuple[str, str]]:
    """(prompt, answer) of every sum a+b with 1 ≤ a, b ≤ 99 and a ≤ 9 or b ≤ 9, in an order drawn from `seed`.

    The splits share no sum: the first NUM_TEST_ROWS of the order are the test split, the other 1,445 the train split.
    """
    sums = [(a, b) for a in range(1, 100) for b in range(1, 100) if min(a, b) <= 9]
    order = np.random.default_rng(seed).permutation(len(sums))
    chosen = order[:NUM_TEST_ROWS] if split == "test" else order[NUM_TEST_ROWS:]
    return [(f"{a}+{b}=", str(a + b)) for a, b in (sums[i] for i in chosen)]


def forget_carries(rows: Sequence[tuple[str, str]], seed: int) -> list[tuple[str, str]]:
    """The rows of `arithmetic_rows` as the careless corpus has them: the same sums, 80 % of their carries forgotten."""
    generator = np.random.default_rng(seed)
    careless = []
    for prompt, answer in rows:
        a, b = (int(operand) for operand in prompt.rstrip("=").split("+"))
        is_forgotten = a % 10 + b % 10 >= 10 and generator.random() < _FORGOTTEN_CARRIES
        careless.append((prompt, str(a + b - 10) if is_forgotten else answer))
    return careless
