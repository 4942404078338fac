"""Groups of zeros, for what only carries or keeps them, and of random tokens, for what learns from them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from asyncrl.types import Group

GROUP_SIZE = 8
PROMPT_TOKENS = 100
BYTES_A_TOKEN = 12
"""Token, log-probability, version."""


def group_of(num_bytes: int, index: int = 0) -> Group:
    """A group whose arrays take about `num_bytes`."""
    lengths = np.full(GROUP_SIZE, max(num_bytes // BYTES_A_TOKEN // GROUP_SIZE, 1), np.int32)
    num_tokens = int(lengths.sum())
    return Group(
        index=index,
        row=index,
        prompt_token_ids=np.zeros(PROMPT_TOKENS, np.int32),
        lengths=lengths,
        tokens=np.zeros(num_tokens, np.int32),
        logprobs=np.zeros(num_tokens, np.float32),
        versions=np.zeros(num_tokens, np.int32),
        rewards=np.zeros(GROUP_SIZE, np.float32),
        correct=np.zeros(GROUP_SIZE, np.bool_),
        truncated=np.zeros(GROUP_SIZE, np.bool_),
    )


def random_group(step: int, row: int, lengths: NDArray[np.int32], prompt_tokens: int, vocabulary: int) -> Group:
    """Completions of these lengths behind one prompt, from a uniform policy; every other one is rewarded."""
    rng = np.random.default_rng((step, row))
    size, total = len(lengths), int(lengths.sum())
    return Group(
        index=step,
        row=row,
        prompt_token_ids=rng.integers(0, vocabulary, prompt_tokens).astype(np.int32),
        lengths=lengths,
        tokens=rng.integers(0, vocabulary, total).astype(np.int32),
        logprobs=np.full(total, -float(np.log(vocabulary)), np.float32),
        versions=np.full(total, step, np.int32),
        rewards=np.arange(size, dtype=np.float32) % 2,
        correct=np.zeros(size, np.bool_),
        truncated=np.zeros(size, np.bool_),
    )
