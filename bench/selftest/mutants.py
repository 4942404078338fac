"""Bugs of the kinds that users of such systems have reported, seeded one at a time; each names the check that finds it.

    python -m bench mutants                   the stand-in engine
    python -m bench mutants --engine vllm     the real vLLM on a CPU

All are installed at first and switched on one by one, so that a vLLM whose workers are forks of this process has them
too. See bench/README.md.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from inspect import iscoroutinefunction, signature
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import numpy as np
import torch

from asyncrl.config.schema import VLLM
from asyncrl.errors import RunError
from asyncrl.generate.engines.base import Sampling
from asyncrl.generate.engines.registry import engine_class
from asyncrl.learn.policy.model import PolicyModel
from asyncrl.publish import receiver
from asyncrl.publish.receiver import Receiver
from asyncrl.selftest import learner
from asyncrl.selftest.model import with_model
from asyncrl.selftest.result import Result
from asyncrl.selftest.suite import CHECKS, run_checks
from asyncrl.selftest.system import System
from asyncrl.types import Completion
from bench.selftest.local_system import STAND_IN, config_of, local_system
from bench.standin.engine import StandInEngine
from bench.support.sampler import SamplingBatch

NONE = -1
LATE_S = 1.0
MOST_TOKENS = 32
"""Any engine takes so many."""
DEADLINE_S = 30.0
LATE = "a generator says that it serves a version before it does"

_active = multiprocessing.RawValue("i", NONE)
"""Number of the mutant that is switched on, in this process and in those that it forks."""

Patch = tuple[Any, str, Callable[..., Any]]
"""Where, what, and what is called instead: it gets what was there as its first argument."""


@dataclass(frozen=True)
class Mutant:
    """One bug."""

    name: str
    check: str
    """That has to find it."""
    patches: Callable[[Any], list[Patch]]
    """For the engine's class; empty = it cannot be seeded there."""


MUTANTS: list[Mutant] = []


def mutant(name: str, check: str) -> Callable[[Callable[[Any], list[Patch]]], None]:
    return lambda patches: MUTANTS.append(Mutant(name, check, patches))


@contextmanager
def installed(engine: str) -> Iterator[list[Mutant]]:
    """All mutants that can be seeded in this engine, none switched on."""
    kind = engine_class(engine)
    found = []
    with ExitStack() as stack:
        for number, one in enumerate(MUTANTS):
            patches = one.patches(kind)
            for owner, name, instead in patches:
                stack.callback(setattr, owner, name, getattr(owner, name))
                setattr(owner, name, _switchable(number, getattr(owner, name), instead))
            if patches:
                found.append(one)
        yield found


@contextmanager
def switched_on(one: Mutant) -> Iterator[None]:
    _active.value = MUTANTS.index(one)
    try:
        yield
    finally:
        _active.value = NONE


def _switchable(number: int, original: Callable[..., Any], instead: Callable[..., Any]) -> Callable[..., Any]:
    def choose(*args: Any, **kwargs: Any) -> Any:
        if _active.value == number:
            return instead(original, *args, **kwargs)
        return original(*args, **kwargs)

    async def choose_async(*args: Any, **kwargs: Any) -> Any:
        return await choose(*args, **kwargs)

    return choose_async if iscoroutinefunction(original) else choose


def results_of(system: System, one: Mutant) -> list[Result]:
    """What the check that has to find it says; the system serves a sound version before."""
    system.publish()
    with switched_on(one):
        results = list(run_checks(system, [check for check in CHECKS if check.name == one.check], lambda _: None))
    if one.name == LATE:
        _wait_until_served(system)
    return results


def _wait_until_served(system: System) -> None:
    """What a late generator does late must not fall into the next mutant's time."""
    deadline_s = time.monotonic() + DEADLINE_S
    generator = system.generators[0]
    while time.monotonic() < deadline_s:
        (sampled,) = system.sample(generator, [system.prompt(0, 4)], system.sampling(1))
        if sampled.completions[0].versions[0] == system.version:
            return
    raise TimeoutError(f"version {system.version} was not served within {DEADLINE_S:.0f} s")


# ── the engine ────────────────────────────────────────────────────────────────────────────────────────────────────────


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


# ── the publish path ──────────────────────────────────────────────────────────────────────────────────────────────────


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


# ── the learner ───────────────────────────────────────────────────────────────────────────────────────────────────────


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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default=STAND_IN, help=f"vllm, or module:Class (default: {STAND_IN})")
    arguments = parser.parse_args()
    engine = VLLM if arguments.engine == "vllm" else arguments.engine
    with tempfile.TemporaryDirectory() as parent, installed(engine) as mutants:
        missed = run_all(engine, Path(parent), mutants)
    print(f"{len(mutants) - missed} of {len(mutants)} found")
    return 1 if missed else 0


def run_all(engine: str, parent: Path, mutants: list[Mutant]) -> int:
    """Prints a line for each; returns how many were missed."""
    config = with_model(config_of("tiny", engine), parent)
    missed = 0
    with local_system(config) as system:
        for one in mutants:
            (result,) = results_of(system, one)
            missed += result.status != "failed"
            print(f"{'found' if result.status == 'failed' else 'MISSED'}  {one.name}  ({one.check}: {result.reason})")
            sys.stdout.flush()
    return missed


if __name__ == "__main__":
    sys.exit(main())
