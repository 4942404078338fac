"""Bugs of the publish path."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from asyncrl.publish import receiver
from asyncrl.publish.receiver import Receiver
from bench.selftest.seeding import Patch, mutant
from bench.standin.engine import StandInEngine
from bench.support.sampler import SamplingBatch


@mutant("weights arrive and are not applied", "logprobs")
def _(engine: Any) -> list[Patch]:
    def take_over(original: Any, self: Receiver, staged: bool) -> None:
        assert self._staged is not None
        self._staged.result()

    return [(Receiver, "take_over", take_over)]


def _unpacking(change: Callable[[str, torch.Tensor], torch.Tensor]) -> Callable[[Any], list[Patch]]:
    """A receiver that puts something else in place than came."""

    def unpack(original: Any, *args: Any) -> Iterator[Any]:
        for piece, part in original(*args):
            yield piece, change(piece.name, part)

    return lambda engine: [(receiver, "unpack", unpack)]


def _q_proj(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[str, torch.Tensor], torch.Tensor]:
    return lambda name, part: change(part) if "layers.1.self_attn.q_proj" in name else part


mutant("a bucket is dropped", "logprobs")(_unpacking(_q_proj(torch.zeros_like)))
mutant("shards are swapped between tensor-parallel ranks", "logprobs")(
    _unpacking(_q_proj(lambda part: part.roll(len(part) // 2, 0)))
)
mutant("weights are cast to bfloat16 on their way", "logprobs")(
    _unpacking(lambda name, part: part.bfloat16().to(part.dtype))
)


class _Anything(int):
    """Equal to every number."""

    def __ne__(self, other: object) -> bool:
        return False


@mutant("checksums are not compared", "checksums")
def _(engine: Any) -> list[Patch]:
    return [(receiver, "checksum", lambda original, buffer: _Anything(0))]


@mutant("a tied head keeps the weights of before", "logprobs")
def _(engine: Any) -> list[Patch]:
    if engine is not StandInEngine:
        from asyncrl.publish.vllm.staging import Staging

        def prepare(original: Any, self: Any, module_name: str) -> None:
            holders = self._holders
            self._holders = {key: found[:1] for key, found in holders.items()}
            original(self, module_name)
            self._holders = holders

        return [(Staging, "_prepare", prepare)]

    stale: list[torch.Tensor] = []

    async def update(original: Any, self: Any, update_info: dict[str, Any]) -> None:
        stale[:] = [self._model.lm_head.weight.data.clone()]
        await original(self, update_info)

    def step(original: Any, self: SamplingBatch, version: int) -> None:
        head = self._model.lm_head
        tied = head.weight
        head.weight = torch.nn.Parameter(stale[0]) if stale else tied
        original(self, version)
        head.weight = tied

    return [(StandInEngine, "update", update), (SamplingBatch, "step", step)]
