"""What tests/system/test_sglang.py looks at, all in one new process: the import of SGLang takes as long as the rest."""

from __future__ import annotations

import asyncio
import copy
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from asyncrl.config.schema import SGLANG, GeneratorConfig, PublishConfig
from asyncrl.errors import AsyncrlError
from asyncrl.generate.engines.base import Engine, EngineSpec
from asyncrl.generate.engines.registry import engine_class
from asyncrl.publish.session import PublishSession
from asyncrl.transport.messages.learning import Member
from asyncrl.transport.sockets import Network
from asyncrl.types import Completion
from tests.support.models import random_model
from tests.support.publish import (
    PROMPT,
    assert_every_token_is_of_its_version,
    metas_of,
    perturbed,
    sampling,
)
from tests.support.serving import publish_three_times, serving

NUM_REQUESTS, NUM_PUBLISHES = 16, 6


def all_of_them(folder: Path) -> dict[str, Any]:
    return asyncio.run(_all(folder))


async def _all(folder: Path) -> dict[str, Any]:
    tied = random_model(folder / "tied", "qwen3", tied=True)
    untied = random_model(folder / "untied", "llama", tied=False)
    return {
        "tied, sliced": await publish_three_times(tied, 1, "sliced", "gloo", True, SGLANG),
        "untied, TP 2, delta": await publish_three_times(untied, 2, "delta", "gloo", True, SGLANG),
        **await _one_engine(untied),
        "too small a cache": await _error_of(tied, kv_cache_bytes=1 << 10),
        "no weights": await _error_of(_without_weights(tied, folder / "empty"), kv_cache_bytes=32 << 20),
    }


async def _one_engine(folder: Path) -> dict[str, Any]:
    async with serving(folder, 1, SGLANG) as (engine, member):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        return {
            "seeds": await _seeds(engine),
            "longest": await engine.sample("longest", [5] * 63, sampling(2, 1)),
            "truncated": await _refusal_of_truncated_sampling(engine),
            "in flight": await _publishes_in_flight(engine, member, model),
            "given up": await _give_up(engine),
            "noticed after s": await _kill(engine),
        }


async def _seeds(engine: Engine) -> list[list[Completion]]:
    """The same seeds alone, and beside others that are greedy or at another temperature."""
    alone = await engine.sample("alone", PROMPT, sampling(4, 30, seed=3))
    others = [sampling(6, 40, seed=9, temperature=0.0), sampling(6, 40, seed=11, temperature=0.7)]
    beside = [engine.sample(f"beside-{k}", PROMPT, other) for k, other in enumerate(others)]
    together, *_ = await asyncio.gather(engine.sample("together", PROMPT, sampling(4, 30, seed=3)), *beside)
    return [alone, together]


async def _refusal_of_truncated_sampling(engine: Engine) -> str:
    try:
        await engine.sample("truncated", PROMPT, replace(sampling(1, 4), top_p=0.9))
    except AsyncrlError as error:
        return str(error)
    return ""


async def _publishes_in_flight(engine: Engine, member: Member, model: Any) -> list[Completion]:
    """Each request lives through several publishes, with recomputed KV; every token is checked against its version."""
    config = PublishConfig("sliced", "gloo", timeout_s=60, bucket_bytes=4_000, kv_cache="recompute")
    session = await asyncio.to_thread(PublishSession, "learner-1", Network(), [member], config, metas_of(model))
    await asyncio.to_thread(session.send, 0, perturbed(model))
    policies = {0: copy.deepcopy(model)}
    requests = [
        asyncio.create_task(engine.sample(f"flight-{k}", PROMPT, sampling(1, 60, seed=k))) for k in range(NUM_REQUESTS)
    ]
    for version in range(1, NUM_PUBLISHES + 1):
        tensors = perturbed(model, scale=0.01)
        policies[version] = copy.deepcopy(model)
        await asyncio.to_thread(session.send, version, tensors)
    completions = [completion for request in requests for completion in await request]
    session.close()
    assert_every_token_is_of_its_version(completions, policies)
    return completions


async def _give_up(engine: Engine) -> int:
    """How many requests SGLang's front still knows after one was cancelled, and another was answered."""
    long = asyncio.create_task(engine.sample("given-up", PROMPT, sampling(8, 61)))
    await asyncio.sleep(0)
    long.cancel()
    await engine.sample("after", PROMPT, sampling(2, 8))
    return len(engine._processes._manager.rid_to_state)  # type: ignore[attr-defined]


async def _kill(engine: Engine) -> float:
    assert not engine.dead
    engine._processes._children[0].kill()  # type: ignore[attr-defined]
    start_s = time.monotonic()
    while not engine.dead and time.monotonic() < start_s + 60:
        await asyncio.sleep(0.05)
    return time.monotonic() - start_s


async def _error_of(folder: Path, kv_cache_bytes: int) -> str:
    """Why an engine does not start, in a running loop as it needs one."""
    spec = EngineSpec(str(folder), "float32", 64, 16, 0, True, False)
    try:
        engine_class(SGLANG)(spec, GeneratorConfig(kv_cache_bytes=kv_cache_bytes))
    except AsyncrlError as error:
        return f"{type(error).__name__}: {error}"
    return "it started"


def _without_weights(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to, ignore=shutil.ignore_patterns("*.safetensors"))
    return to
