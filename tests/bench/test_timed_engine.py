"""The engine that only takes its time: what it returns has the form of real completions."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np

from asyncrl.config.load import load
from asyncrl.generate.engines.base import EngineSpec, Sampling
from asyncrl.types import Completion
from bench.standin.timed_engine import TimedEngine
from tests.support.models import random_qwen3


def test_tokens_after_a_switch_carry_the_new_version_and_none_is_sampled_while_paused(tmp_path: Path) -> None:
    completions = asyncio.run(_sample_across_a_switch(str(random_qwen3(tmp_path, tied=True))))
    assert len(completions) == 16
    versions = [completion.versions for completion in completions]
    assert all(1 <= len(one) <= 40 for one in versions)
    assert all((np.diff(one) >= 0).all() for one in versions)
    longest = max(versions, key=len)
    assert set(longest.tolist()) == {3, 4}
    assert all((one == longest[: len(one)]).all() for one in versions)  # they advance together


async def _sample_across_a_switch(model_path: str) -> list[Completion]:
    spec = EngineSpec(model_path, "float32", 64, 16, 0, on_cpu=True, transfer_backend="gloo", trust_remote_code=False)
    config = load(None, [f"model.path={model_path}", "data.train=arithmetic"])
    engine = TimedEngine(spec, config.generator)
    await engine.resume(3)
    sampling = Sampling(16, temperature=1.0, top_p=1.0, top_k=-1, max_tokens=40, seed=0)
    sampled = asyncio.create_task(engine.sample("one", [5, 6], sampling))
    await asyncio.sleep(0.03)
    await engine.pause(recompute_kv=False)
    await asyncio.sleep(0.1)
    assert not sampled.done()
    await engine.resume(4)
    return await asyncio.wait_for(sampled, 60)
