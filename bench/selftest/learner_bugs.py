"""Bugs of the learner."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

import torch

from asyncrl.learn.policy.model import PolicyModel
from asyncrl.selftest import learner
from bench.selftest.seeding import Patch, mutant


def _gathering(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Any], list[Patch]]:
    def gather(original: Any, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        return {name: change(tensor) for name, tensor in original(*args, **kwargs).items()}

    return lambda engine: [(learner, "gather", gather)]


mutant("shards are gathered in the wrong order of ranks", "gather")(
    _gathering(lambda tensor: tensor.roll(len(tensor) // 2, 0))
)
mutant("weights are rounded twice when they are gathered", "gather")(
    _gathering(lambda tensor: tensor.half().to(tensor.dtype))
)


@mutant("the version before is published again", "logprobs")
def _(engine: Any) -> list[Patch]:
    last: dict[str, torch.Tensor] = {}

    def gather(original: Any, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        tensors = original(*args, **kwargs)
        before = dict(last)
        last.update(tensors)
        return before or {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}

    return [(learner, "gather", gather)]


@mutant("a training step computes at another temperature than the engine", "training")
def _(engine: Any) -> list[Patch]:
    def forward(original: Any, self: PolicyModel, *args: Any) -> Any:
        call = signature(original).bind(self, *args)
        if torch.is_grad_enabled():
            call.arguments["temperature"] *= 1.3
        return original(*call.args, **call.kwargs)

    return [(PolicyModel, "forward", forward)]
