"""The importance ratio ρ = π_θ / μ of each token, in logarithms. Legend: T tokens."""

from __future__ import annotations

from torch import Tensor

MAX_LOG_RATIO = 20.0
"""float32 exp overflows at 88 and one such token would make the whole sum infinite; exp(20) = 4.9e8 still adds up.
The value is verl's. A token beyond it is numerically broken, and the clamp takes its gradient away."""


def clamped_log_ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """log(p / q) from log p and log q, clamped to ±MAX_LOG_RATIO.

    Args:
        numerator: [T] log p.
        denominator: [T] log q.

    Returns:
        [T] float32.
    """
    return (numerator - denominator).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
