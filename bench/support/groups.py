"""Groups of zeros, for what only carries or keeps them."""

from __future__ import annotations

import numpy as np

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
