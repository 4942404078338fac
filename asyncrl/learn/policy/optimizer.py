"""AdamW and its learning rate as a pure function of the number of updates."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from asyncrl.config.schema import LearnerConfig


def build_optimizer(parameters: Iterable[nn.Parameter], learner: LearnerConfig) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101) of what is not frozen, with the fused kernel, which CPU and CUDA both have.

    The caller sets the rate.
    """
    return torch.optim.AdamW(
        [parameter for parameter in parameters if parameter.requires_grad],
        lr=learner.lr,
        betas=(learner.beta1, learner.beta2),
        eps=learner.eps,
        weight_decay=learner.weight_decay,
        fused=True,
    )


def learning_rate(update: int, learner: LearnerConfig, num_warmup: int, num_updates: int) -> float:
    """The rate of one update.

    It rises linearly over the warm-up and reaches learner.lr with its last update. Then it stays, or falls along a line
    or half a cosine so that it would be 0 at the update after the last one: no update is wasted on a rate of 0.

    Args:
        update: 0-based number of the update, over the whole run.
        learner: peak rate and schedule.
        num_warmup: updates of the warm-up.
        num_updates: updates of the run.
    """
    if update < num_warmup:
        return learner.lr * (update + 1) / num_warmup
    if learner.schedule == "constant":
        return learner.lr
    progress = min(1.0, (update - num_warmup) / max(1, num_updates - num_warmup))
    if learner.schedule == "linear":
        return learner.lr * (1.0 - progress)
    assert learner.schedule == "cosine", f"learner.schedule={learner.schedule!r} passed the config checks"
    return learner.lr * 0.5 * (1.0 + math.cos(math.pi * progress))
