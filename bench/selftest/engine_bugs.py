"""Bugs of an engine."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from asyncrl.errors import RunError
from asyncrl.generate.engines.base import Sampling
from asyncrl.types import Completion
from bench.selftest.seeding import Patch, mutant
from bench.standin.engine import StandInEngine
from bench.support.sampler import SamplingBatch

LATE_S = 1.0
MOST_TOKENS = 32
"""Any engine takes so many."""
LATE = "a generator says that it serves a version before it does"


def _changing(change: Callable[[Completion], Completion]) -> Callable[[Any], list[Patch]]:
    """An engine that does this to each completion."""

    async def sample(original: Any, self: Any, *args: Any) -> list[Completion]:
        return [change(completion) for completion in await original(self, *args)]

    return lambda engine: [(engine, "sample", sample)]


def _asking(change: Callable[[Sampling], Sampling]) -> Callable[[Any], list[Patch]]:
    """An engine that takes another sampling than it was asked for."""

    async def sample(original: Any, self: Any, request_id: str, prompt: list[int], sampling: Sampling) -> Any:
        return await original(self, request_id, prompt, change(sampling))

    return lambda engine: [(engine, "sample", sample)]


mutant("one label for a request that spans two versions", "labels")(
    _changing(lambda one: replace(one, versions=np.full_like(one.versions, one.versions.max())))
)
mutant("a completion takes another token's logprob", "logprobs")(
    _changing(lambda one: replace(one, logprobs=np.roll(one.logprobs, 1)))
)
mutant("temperature 0 is taken for 1", "seeds")(
    _asking(lambda sampling: replace(sampling, temperature=sampling.temperature or 1.0))
)
mutant("the seed is ignored", "seeds")(_asking(lambda sampling: replace(sampling, seed=None)))


def _padded(one: Completion) -> Completion:
    pad = np.zeros(3, np.int32)
    return replace(
        one,
        token_ids=np.concatenate([one.token_ids, pad]),
        logprobs=np.concatenate([one.logprobs, pad.astype(np.float32)]),
        versions=np.concatenate([one.versions, pad + one.versions[-1]]),
    )


mutant("padding after EOS is scored", "completions")(
    _changing(lambda one: _padded(one) if one.finish_reason == "stop" else one)
)


def _cut(one: Completion, length: int) -> Completion:
    return replace(
        one, token_ids=one.token_ids[:length], logprobs=one.logprobs[:length], versions=one.versions[:length]
    )


mutant("the EOS is dropped", "completions")(
    _changing(lambda one: _cut(one, len(one.token_ids) - 1) if one.finish_reason == "stop" else one)
)


def _ended_by_the_publish(one: Completion) -> Completion:
    of_first = int((one.versions == one.versions[0]).sum())
    return one if of_first == len(one.versions) else replace(_cut(one, of_first), finish_reason="length")


mutant("a publish ends the requests that it meets", "completions")(_changing(_ended_by_the_publish))


mutant("the text is not that of the tokens", "completions")(_changing(lambda one: replace(one, text=one.text + " ")))


def _labelled_early(one: Completion) -> Completion:
    return replace(one, versions=np.append(one.versions[1:], one.versions[-1]))


mutant("the last token of the old version is labelled as new", "labels")(_changing(_labelled_early))


@mutant("answers go to who asked before", "mixed requests")
def _(engine: Any) -> list[Patch]:
    before: list[list[Completion]] = []

    async def sample(original: Any, self: Any, *args: Any) -> list[Completion]:
        before.append(await original(self, *args))
        return before.pop(0) if len(before) > 1 else before[0]

    return [(engine, "sample", sample)]


@mutant("what decodes together has the temperature of one", "mixed requests")
def _(engine: Any) -> list[Patch]:
    if engine is not StandInEngine:
        return []

    def choose(original: Any, self: SamplingBatch, logits: torch.Tensor) -> Any:
        self._temperatures = self._temperatures[:1].expand(len(logits))
        return original(self, logits)

    return [(SamplingBatch, "_choose", choose)]


@mutant("a prompt that is too long is cut", "bad requests")
def _(engine: Any) -> list[Patch]:
    async def sample(original: Any, self: Any, request_id: str, prompt: list[int], sampling: Sampling) -> Any:
        return await original(self, request_id, prompt[:MOST_TOKENS], sampling)

    return [(engine, "sample", sample)]


@mutant("a bad prompt ends in an error that ends the generator", "bad requests")
def _(engine: Any) -> list[Patch]:
    async def sample(original: Any, self: Any, *args: Any) -> Any:
        try:
            return await original(self, *args)
        except RunError as error:
            raise ValueError(str(error)) from error

    return [(engine, "sample", sample)]


@mutant("what is cancelled is sampled to its end", "cancelled requests")
def _(engine: Any) -> list[Patch]:
    async def sample(original: Any, self: Any, *args: Any) -> Any:
        return await asyncio.shield(asyncio.ensure_future(original(self, *args)))

    return [(engine, "sample", sample)]


@mutant("the kernels are not named", "kernels")
def _(engine: Any) -> list[Patch]:
    async def kernels(original: Any, self: Any) -> dict[str, str]:
        return {}

    return [(engine, "kernels", kernels)]


@mutant("all completions of a group are the same", "seeds")
def _(engine: Any) -> list[Patch]:
    async def sample(original: Any, self: Any, *args: Any) -> list[Completion]:
        completions = await original(self, *args)
        return [completions[0]] * len(completions)

    return [(engine, "sample", sample)]


@mutant("versions are off by one", "labels")
def _(engine: Any) -> list[Patch]:
    return [(engine, "resume", lambda original, self, version: original(self, version - 1))]


@mutant("the KV cache is kept although it was to be computed anew", "labels")
def _(engine: Any) -> list[Patch]:
    return [(engine, "pause", lambda original, self, recompute_kv: original(self, False))]


@mutant(LATE, "labels")
def _(engine: Any) -> list[Patch]:
    pause, update, resume = engine.pause, engine.update, engine.resume

    async def pause_later(original: Any, self: Any, recompute_kv: bool) -> None:
        self.late_kv = recompute_kv

    async def update_later(original: Any, self: Any, update_info: dict[str, Any]) -> None:
        self.late_info = update_info

    async def resume_later(original: Any, self: Any, version: int) -> None:
        async def switch() -> None:
            await asyncio.sleep(LATE_S)
            await pause(self, self.late_kv)
            await update(self, self.late_info)
            await resume(self, version)

        self.late = asyncio.create_task(switch())

    return [(engine, "pause", pause_later), (engine, "update", update_later), (engine, "resume", resume_later)]


@mutant("a top-k that nobody asked for, with logprobs of what is left", "logprobs")
def _(engine: Any) -> list[Patch]:
    if engine is not StandInEngine:
        return _asking(lambda sampling: replace(sampling, top_k=4))(engine)

    def choose(original: Any, self: SamplingBatch, logits: torch.Tensor) -> Any:
        return original(self, _top(logits))

    return [(SamplingBatch, "_choose", choose)]


def _top(logits: torch.Tensor) -> torch.Tensor:
    return logits.masked_fill(logits < logits.topk(4, dim=-1).values[:, -1:], -torch.inf)


def _drawn_from(change: Callable[[torch.Tensor, float], torch.Tensor]) -> Callable[[Any], list[Patch]]:
    """A stand-in that draws from other logits than its logprobs are of."""

    def choose(original: Any, self: SamplingBatch, logits: torch.Tensor) -> Any:
        drawn = logits.clone()
        for request, rows in zip(self._requests, self._rows, strict=True):
            drawn[rows] = change(logits[rows], request.sampling.temperature)
        chosen, _ = original(self, drawn)
        logprobs = torch.empty(len(logits))
        for request, rows in zip(self._requests, self._rows, strict=True):
            scores = (logits[rows] / request.sampling.temperature).log_softmax(-1)
            logprobs[rows] = scores.gather(1, chosen[rows, None])[:, 0]
        return chosen, logprobs

    return lambda engine: [(SamplingBatch, "_choose", choose)] if engine is StandInEngine else []


mutant("a top-k that nobody asked for, with logprobs of the whole vocabulary", "sampling")(
    _drawn_from(lambda logits, temperature: _top(logits))
)
mutant("sampled at temperature 1, whatever was asked for", "sampling")(
    _drawn_from(lambda logits, temperature: logits * temperature)
)


@mutant("logprobs are those before temperature", "logprobs")
def _(engine: Any) -> list[Patch]:
    if engine is not StandInEngine:
        from vllm.v1.sample.sampler import Sampler

        def forward(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
            drawing = self.topk_topp_sampler
            self.logprobs_mode = drawing.logprobs_mode = "raw_logprobs"
            output = original(self, *args, **kwargs)
            self.logprobs_mode = drawing.logprobs_mode = "processed_logprobs"
            return output

        return [(Sampler, "forward", forward)]

    def choose(original: Any, self: SamplingBatch, logits: torch.Tensor) -> Any:
        chosen, _ = original(self, logits)
        return chosen, logits.log_softmax(-1).gather(1, chosen[:, None])[:, 0]

    return [(SamplingBatch, "_choose", choose)]


@mutant("a prompt that an older version has cached is not computed anew", "prefix cache")
def _(engine: Any) -> list[Patch]:
    if engine is not StandInEngine:

        async def resume(original: Any, self: Any, version: int) -> None:
            await original(self, version)
            self._version = 0  # which the engine salts its prefix cache with

        return [(engine, "resume", resume)]
    cached: dict[tuple[int, ...], Any] = {}

    def step(original: Any, self: SamplingBatch, version: int) -> None:
        prompt = tuple(self._requests[0].prompt_token_ids)
        if len(self._requests) > 1 or self._versions:
            original(self, version)
        elif prompt in cached:
            self._cache = copy.deepcopy(cached[prompt])
            self._cache.batch_repeat_interleave(len(self._ids))
            original(self, version)
        else:
            original(self, version)
            cached[prompt] = copy.deepcopy(self._cache)
            cached[prompt].batch_select_indices(torch.tensor([0]))
            cached[prompt].crop(len(prompt) - 1 - cached[prompt].get_seq_length())

    return [(SamplingBatch, "step", step)]
