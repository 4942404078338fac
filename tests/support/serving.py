"""A real engine that takes publish commands, and what is published to it in the tests of every engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import torch
import zmq.asyncio
from transformers import AutoModelForCausalLM, PreTrainedModel

from asyncrl.config.schema import VLLM, GeneratorConfig, PublishConfig
from asyncrl.generate.engines.base import Engine, EngineSpec
from asyncrl.generate.engines.registry import engine_class
from asyncrl.generate.publish_server import PublishServer
from asyncrl.publish.session import PublishSession
from asyncrl.transport.messages.learning import Member
from asyncrl.transport.sockets import Network, bind
from tests.support.publish import PROMPT, another_adapter, largest_difference, metas_of, perturbed, sampling


@asynccontextmanager
async def serving(folder: Path, tensor_parallel: int, name: str = VLLM) -> AsyncIterator[tuple[Engine, Member]]:
    spec = EngineSpec(str(folder), "float32", 64, 64, 0, True, False)
    engine = engine_class(name)(spec, GeneratorConfig(tensor_parallel=tensor_parallel, kv_cache_bytes=32 << 20))
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
    folder: Path, tensor_parallel: int, engine_name: str, transport: str, staged: bool, name: str = VLLM
) -> list[float]:
    """Largest difference of logprobs after each publish, and at another temperature after the last."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    differences = []
    async with serving(folder, tensor_parallel, name) as (engine, member):
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
