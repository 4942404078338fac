"""The proximal policy of decoupled PPO without a forward pass. Legend: T tokens."""

from __future__ import annotations

from torch import Tensor


def interpolated(logprobs: Tensor, behaviour_logprobs: Tensor, lags: Tensor) -> Tensor:
    """log π_prox = log μ + α·(log π_θ − log μ), α = (v_prox − v_μ) / (v_θ − v_μ) (AReaL's log-linear approximation).

    With v_prox = v the version at the start of the step, v_θ = v + 1 the one it makes and lag = v − v_μ this is
    α = lag / (lag + 1): a token of lag 0 has π_prox = μ. (AReaL's code counts its trainer's version v as v_θ, which at
    the same lag makes α = (lag − 1) / lag.)

    Args:
        logprobs: [T] log π_θ.
        behaviour_logprobs: [T] log μ.
        lags: [T] int64 ≥ 0.

    Returns:
        [T] without gradient.
    """
    alpha = lags / (lags + 1)
    return behaviour_logprobs + alpha * (logprobs.detach() - behaviour_logprobs)
