"""Weights go from a learner into a running vLLM, whole and exact: over gloo, and over what stands for NCCL here."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from asyncrl.errors import PublishError
from asyncrl.publish.groups.base import Transfer
from asyncrl.publish.groups.gloo import GlooGroup
from asyncrl.types import Completion
from tests.support import nccl
from tests.support.fresh import run_fresh
from tests.support.models import random_model, random_qwen3
from tests.support.publish import (
    PROMPT,
    TOLERANCE,
    largest_difference,
    perturbed,
    sampling,
)
from tests.support.serving import open_session, publish_three_times, serving


def exactness(folder: Path, tensor_parallel: int, engine_name: str, transport: str, staged: bool) -> list[float]:
    nccl.install()
    return asyncio.run(publish_three_times(folder, tensor_parallel, engine_name, transport, staged))


@pytest.mark.system
@pytest.mark.parametrize(
    ("family", "tied", "tensor_parallel", "engine_name", "transport", "staged"),
    [
        ("qwen3", True, 1, "broadcast", "gloo", True),
        ("llama", False, 1, "broadcast", "gloo", False),
        ("qwen2", True, 2, "sliced", "gloo", True),
        ("qwen3", False, 2, "delta", "gloo", True),
        ("qwen3_moe", False, 2, "sliced", "gloo", True),
        ("llama", True, 1, "broadcast", "nccl", False),
        ("qwen3_moe", False, 2, "sliced", "nccl", True),
        ("qwen3", False, 2, "delta", "nccl", True),
        ("qwen2", True, 2, "adapter", "gloo", True),
    ],
)
def test_after_every_publish_the_engine_samples_from_exactly_the_learners_policy(
    tmp_path: Path, family: str, tied: bool, tensor_parallel: int, engine_name: str, transport: str, staged: bool
) -> None:
    folder = random_model(tmp_path / "model", family, tied=tied)
    differences = run_fresh(exactness, folder, tensor_parallel, engine_name, transport, staged)
    assert len(differences) == 4
    assert max(differences) < TOLERANCE


async def published_and_loaded(folder: Path, changed: Path, tensor_parallel: int) -> list[list[Completion]]:
    """What an engine samples after a publish, and another that has loaded the same weights from a checkpoint."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    outcomes = []
    async with serving(folder, tensor_parallel) as (engine, member):
        session = await asyncio.to_thread(open_session, member, model, "sliced")
        for version in range(2):
            await asyncio.to_thread(session.send, version, perturbed(model))
        outcomes.append(await engine.sample("published", PROMPT, sampling(8, 40)))
        session.close()
    model.save_pretrained(changed)
    AutoTokenizer.from_pretrained(folder).save_pretrained(changed)
    async with serving(changed, tensor_parallel) as (engine, _):
        outcomes.append(await engine.sample("loaded", PROMPT, sampling(8, 40)))
    return outcomes


def latent_attention(folder: Path, changed: Path) -> list[list[Completion]]:
    return asyncio.run(published_and_loaded(folder, changed, tensor_parallel=1))


@pytest.mark.skip(reason="fails once in two runs, by 0.15; latent attention is refused until that is understood")
@pytest.mark.system
def test_latent_attention_and_experts_compute_after_a_publish_as_if_vllm_had_loaded_the_weights_itself(
    tmp_path: Path,
) -> None:
    """Not compared with transformers: vLLM's own DeepSeek on a CPU differs from it by 0.004 on these very weights."""
    folder = random_model(tmp_path / "model", "deepseek_v2", tied=False)
    published, loaded = run_fresh(latent_attention, folder, tmp_path / "changed")
    num_compared, largest = 0, 0.0
    for mine, theirs in zip(published, loaded, strict=True):
        length = min(len(mine.token_ids), len(theirs.token_ids))
        same = int(np.cumprod(mine.token_ids[:length] == theirs.token_ids[:length]).sum())  # rounding may flip a token
        num_compared += same
        largest = max(largest, float(np.abs(mine.logprobs[:same] - theirs.logprobs[:same]).max(initial=0.0)))
    assert num_compared > 100
    assert largest < TOLERANCE


def flip_a_byte(num_times: int) -> None:
    """Of the first bucket that comes, in vLLM's worker too: it is a fork of this process."""
    broadcast, left = GlooGroup.broadcast, [num_times]

    class Flipping:
        def __init__(self, work: Transfer, buffer: torch.Tensor) -> None:
            self._work, self._buffer = work, buffer

        def wait(self) -> None:
            self._work.wait()
            if left[0] and self._buffer.dtype == torch.uint8:
                left[0] -= 1
                self._buffer[7] ^= 1

    GlooGroup.broadcast = lambda self, buffer: Flipping(broadcast(self, buffer), buffer)


async def publish_with_flipped_bytes(folder: Path, num_times: int) -> str:
    flip_a_byte(num_times)
    async with serving(folder, 1) as (engine, member):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        session = await asyncio.to_thread(open_session, member, model)
        try:
            await asyncio.to_thread(session.send, 0, perturbed(model))
        except PublishError as error:
            return str(error)
        finally:
            session.close()
        return f"difference {largest_difference(model, await engine.sample('after', PROMPT, sampling(4, 40)))}"


def flipped_bytes(folder: Path, num_times: int) -> str:
    return asyncio.run(publish_with_flipped_bytes(folder, num_times))


@pytest.mark.system
def test_a_bucket_that_arrives_changed_is_sent_again_and_twice_is_an_error_that_names_it(tmp_path: Path) -> None:
    folder = random_qwen3(tmp_path / "model", tied=True)
    kind, difference = run_fresh(flipped_bytes, folder, 1).split()
    assert kind == "difference"
    assert float(difference) < TOLERANCE
    message = run_fresh(flipped_bytes, folder, 1000)
    assert message.startswith("transfer: bucket 0 of ")
    assert "came to generator-0 with another checksum" in message


async def engine_core_killed(folder: Path) -> bool:
    async with serving(folder, 1) as (engine, _):
        assert not engine.dead
        next(child for child in psutil.Process().children() if child.children()).kill()
        for _ in range(600):
            await asyncio.sleep(0.1)
            if engine.dead:
                return True
    return False


def killed_engine_core(folder: Path) -> bool:
    return asyncio.run(engine_core_killed(folder))


@pytest.mark.system
def test_an_engine_whose_core_is_killed_while_it_is_idle_says_that_it_is_dead(tmp_path: Path) -> None:
    assert run_fresh(killed_engine_core, random_qwen3(tmp_path / "model", tied=True))
