"""Weights go from a learner into a running vLLM, whole and exact: over gloo, and over what stands for NCCL here."""

from __future__ import annotations

import asyncio
from hashlib import sha256
from pathlib import Path

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from asyncrl.errors import PublishError
from asyncrl.publish.groups.base import Transfer
from asyncrl.publish.groups.gloo import GlooGroup
from asyncrl.publish.vllm import latent_attention
from asyncrl.publish.vllm.receiver import WorkerExtension
from tests.support import nccl
from tests.support.fresh import run_fresh
from tests.support.launch import largest_child
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


def fingerprints(self: WorkerExtension) -> dict[str, str]:
    """In a worker: of everything that its model computes with."""
    model = self.weight_transfer_engine.model
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for number, attention in enumerate(latent_attention.attentions(model)):
        tensors |= {f"W_UK_T.{number}": attention.W_UK_T, f"W_UV.{number}": attention.W_UV}
    return {
        name: sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest() for name, tensor in tensors.items()
    }


async def published_and_loaded(folder: Path, changed: Path, tensor_parallel: int) -> list[list[dict[str, str]]]:
    """The tensors of an engine after two publishes, and of another that has loaded the same weights."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    outcomes = []
    async with serving(folder, tensor_parallel) as (engine, member):
        session = await asyncio.to_thread(open_session, member, model, "sliced")
        for version in range(2):
            await asyncio.to_thread(session.send, version, perturbed(model))
        outcomes.append(await engine._llm.collective_rpc("fingerprints"))
        session.close()
    model.save_pretrained(changed)
    AutoTokenizer.from_pretrained(folder).save_pretrained(changed)
    async with serving(changed, tensor_parallel) as (engine, _):
        outcomes.append(await engine._llm.collective_rpc("fingerprints"))
    return outcomes


def latent_attention_tensors(folder: Path, changed: Path) -> list[list[dict[str, str]]]:
    """vLLM's workers are forks of this process, so they have these changes too."""
    WorkerExtension.fingerprints = fingerprints
    latent_attention.refuse = lambda model, device: None
    return asyncio.run(published_and_loaded(folder, changed, tensor_parallel=2))


@pytest.mark.system
def test_a_model_with_latent_attention_and_experts_has_after_a_publish_every_tensor_as_if_vllm_had_loaded_it(
    tmp_path: Path,
) -> None:
    """Its logprobs on a CPU say nothing, see `latent_attention.refuse`."""
    folder = random_model(tmp_path / "model", "deepseek_v2", tied=False)
    published, loaded = run_fresh(latent_attention_tensors, folder, tmp_path / "changed")
    assert [set(worker) for worker in published] == [set(worker) for worker in loaded]
    assert any(name.startswith("W_UV") for name in published[0])
    assert published == loaded


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


async def engine_core_killed(folder: Path, tensor_parallel: int, receiving: bool) -> bool:
    """Whether the engine says that it is dead, long before a worker that waits for weights gives up."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    async with serving(folder, tensor_parallel) as (engine, member):
        assert not engine.dead
        if receiving:
            session = await asyncio.to_thread(open_session, member, model)
            await asyncio.to_thread(session.send, 0, perturbed(model))
            await engine.stage()  # and nothing is sent
        largest_child(psutil.Process()).kill()
        for _ in range(200):
            await asyncio.sleep(0.1)
            if engine.dead:
                return True
    return False


def killed_engine_core(folder: Path, tensor_parallel: int, receiving: bool) -> bool:
    return asyncio.run(engine_core_killed(folder, tensor_parallel, receiving))


@pytest.mark.system
@pytest.mark.parametrize(("tensor_parallel", "receiving"), [(1, False), (2, True)])  # 2: its workers hold vLLM's pipe
def test_an_engine_whose_core_is_killed_says_that_it_is_dead_idle_or_while_a_worker_waits_for_weights(
    tmp_path: Path, tensor_parallel: int, receiving: bool
) -> None:
    assert run_fresh(killed_engine_core, random_qwen3(tmp_path / "model", tied=True), tensor_parallel, receiving)
