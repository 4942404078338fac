"""The proximal policy of decoupled PPO without a forward pass. Legend: T tokens."""

from __future__ import annotations

import torch
from torch import Tensor


def interpolated(logprobs: Tensor, behaviour_logprobs: Tensor, lags: Tensor, progress: float) -> Tensor:
    """log π_prox = log μ + α·(log π_θ − log μ), α = (v_prox − v_μ) / (v_θ − v_μ) (AReaL's log-linear approximation).

    v_prox = v is the version at the start of the step and lag = v − v_μ. After a share p of the step's updates π_θ is
    counted as version v + p, so that α = lag / (lag + p). In the first update p = 0 and π_prox is π_θ, which is exact:
    what lies between it and μ, the mismatch of the engines included, is the correction's. In a later update a token of
    lag 0 has π_prox = μ, since nothing tells its mismatch from the step's own change.

    Departure: AReaL's code counts the trainer's version v as v_θ and v − 1 as v_prox: α = (lag − 1) / lag.

    Args:
        logprobs: [T] log π_θ.
        behaviour_logprobs: [T] log μ.
        lags: [T] int64 ≥ 0.
        progress: p in [0, 1).

    Returns:
        [T] without gradient.
    """
    alpha = lags / (lags + progress) if progress > 0 else torch.ones_like(logprobs)
    return behaviour_logprobs + alpha * (logprobs.detach() - behaviour_logprobs)
