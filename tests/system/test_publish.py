"""Weights go from a learner into a running vLLM, whole and exact: over gloo, and over what stands for NCCL here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import zmq.asyncio
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from asyncrl.config.schema import GeneratorConfig, PublishConfig
from asyncrl.errors import PublishError
from asyncrl.generate.engines.base import EngineSpec
from asyncrl.generate.engines.vllm import VllmEngine
from asyncrl.generate.publish_server import PublishServer
from asyncrl.publish.groups.base import Transfer
from asyncrl.publish.groups.gloo import GlooGroup
from asyncrl.publish.session import PublishSession
from asyncrl.publish.vllm import latent_attention
from asyncrl.publish.vllm.worker_extension import WorkerExtension
from asyncrl.transport.messages.learning import Member
from asyncrl.transport.sockets import Network, bind
from tests.support import nccl
from tests.support.fresh import run_fresh
from tests.support.models import random_model, random_qwen3
from tests.support.publish import (
    PROMPT,
    TOLERANCE,
    another_adapter,
    largest_difference,
    metas_of,
    perturbed,
    sampling,
)


@asynccontextmanager
async def serving(folder: Path, tensor_parallel: int) -> AsyncIterator[tuple[VllmEngine, Member]]:
    """A real engine that takes publish commands."""
    spec = EngineSpec(str(folder), "float32", 64, 64, 0, True, False)
    engine = VllmEngine(spec, GeneratorConfig(tensor_parallel=tensor_parallel, kv_cache_bytes=32 << 20))
    await engine.warm_up()
    socket, endpoint = bind(zmq.asyncio.Context.instance(), Network())
    server = asyncio.create_task(PublishServer(socket, engine, timeout_s=60).run())
    try:
        yield engine, Member("generator-0", endpoint, tensor_parallel)
    finally:
        server.cancel()
        socket.close()
        engine.shutdown()


def open_session(
    member: Member, model: PreTrainedModel, engine: str = "broadcast", transport: str = "gloo", staged: bool = True
) -> PublishSession:
    config = PublishConfig(engine, transport, timeout_s=60, bucket_bytes=4_000, staged=staged)
    metas = metas_of(model)
    if engine == "adapter":
        metas = {name: tensor.to("meta") for name, tensor in another_adapter(model).items()}
    return PublishSession("learner-0", Network(), [member], config, metas)


def next_policy(model: PreTrainedModel, engine: str) -> dict[str, torch.Tensor]:
    """The model, or its adapter, is changed; what is to be published."""
    return another_adapter(model) if engine == "adapter" else perturbed(model)


def with_few_changes(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        model.lm_head.weight[3] *= 1.5
        model.model.layers[0].self_attn.o_proj.weight[:, 7] *= 1.5
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


async def publish_three_times(
    folder: Path, tensor_parallel: int, engine_name: str, transport: str, staged: bool
) -> list[float]:
    """Largest difference of logprobs after each publish, and at another temperature after the last."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    differences = []
    async with serving(folder, tensor_parallel) as (engine, member):
        session = await asyncio.to_thread(open_session, member, model, engine_name, transport, staged)
        for version in range(3):
            in_flight = [
                asyncio.create_task(engine.sample(f"flight-{version}-{k}", PROMPT, sampling(4, 50, seed=k)))
                for k in range(4)
            ]
            await asyncio.sleep(0.05)
            await asyncio.to_thread(session.send, version, next_policy(model, engine_name))
            for completion in [c for task in in_flight for c in await task]:
                assert set(completion.versions) <= {version - 1, version}
                assert (np.diff(completion.versions) >= 0).all()
            completions = await engine.sample(f"after-{version}", PROMPT, sampling(8, 40))
            assert {v for c in completions for v in c.versions} == {version}
            differences.append(largest_difference(model, completions))
        tensors = another_adapter(model) if engine_name == "adapter" else with_few_changes(model)
        figures = await asyncio.to_thread(session.send, 3, tensors)
        num_bytes = sum(tensor.nbytes for tensor in tensors.values())
        assert (figures["publish/bytes"] < num_bytes / 20) == (engine_name in ("delta", "adapter"))
        hot = await engine.sample("hot", PROMPT, sampling(8, 40, temperature=0.7))
        differences.append(largest_difference(model, hot, temperature=0.7))
        session.close()
    return differences


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
