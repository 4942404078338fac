"""Completions that come near the length limit."""

from __future__ import annotations

from torch import Tensor


def soft_penalty(lengths: Tensor, max_tokens: int, buffer_tokens: int) -> Tensor:
    """0 up to max_tokens − buffer_tokens, then falling linearly to −1 at max_tokens (DAPO, arXiv 2503.14476, eq. 13).

    Departure: a completion cannot be longer than max_tokens here, so the paper's third case does not arise.

    Args:
        lengths: [N] int64 tokens of each completion.
        max_tokens: the longest completion that is sampled.
        buffer_tokens: > 0, at most max_tokens.

    Returns:
        [N] float32 to be added to the rewards, in [−1, 0].
    """
    over = lengths - (max_tokens - buffer_tokens)
    return -(over.float() / buffer_tokens).clamp(0.0, 1.0)
