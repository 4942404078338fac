"""The importance ratio ρ = π_θ / μ of each token, in logarithms. Legend: T tokens."""

from __future__ import annotations

from torch import Tensor

MAX_LOG_RATIO = 20.0
"""float32 exp overflows at 88 and one such token would make the whole sum infinite; exp(20) = 4.9e8 still adds up.
The value is verl's. A token beyond it is numerically broken, and the clamp takes its gradient away."""

MAX_RATIO = 20.0
"""The largest importance weight that a loss gives a token by itself; a correction may bound it further. Without a bound
one token that the engine gave 1e-6 and π_θ gives 0.15 outweighs all others. DPPO truncates at 20 and finds that a tight
bound biases (arXiv 2602.04879, section 5.4)."""


def clamped_log_ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """log(p / q) from log p and log q, clamped to ±MAX_LOG_RATIO.

    Args:
        numerator: [T] log p.
        denominator: [T] log q.

    Returns:
        [T] float32.
    """
    return (numerator - denominator).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def truncated_ratio(log_ratio: Tensor) -> Tensor:
    """min(ρ, MAX_RATIO), with the gradient min(ρ, MAX_RATIO)·∇log ρ: beyond the bound a token keeps a bounded gradient.

    Args:
        log_ratio: [T] log ρ, clamped.

    Returns:
        [T]
    """
    held = log_ratio.detach().exp().clamp(max=MAX_RATIO)
    return held * (1 + log_ratio - log_ratio.detach())
