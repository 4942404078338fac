"""Every kind of publish into an engine that starts in a second, over both transports; vLLM's is in tests/system."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import zmq.asyncio
from transformers import AutoModelForCausalLM, PreTrainedModel

from asyncrl.config.schema import GeneratorConfig, PublishConfig
from asyncrl.errors import PublishError
from asyncrl.generate.engines.base import EngineSpec
from asyncrl.generate.publish_server import PublishServer
from asyncrl.publish.groups import nccl as nccl_group
from asyncrl.publish.session import PublishSession
from asyncrl.transport.messages.learning import Member
from asyncrl.transport.sockets import Network, bind
from bench.standin.engine import ModelReceiver, StandInEngine
from tests.support import nccl
from tests.support.models import random_qwen3
from tests.support.publish import another_adapter, merged_by_hand, metas_of, perturbed

TRANSPORTS = ["gloo", "nccl"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_qwen3(tmp_path_factory.mktemp("model"), tied=True)


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nccl_group, "communicator", nccl.StandInCommunicator)


async def with_two_generators(folder: Path, learner: Callable[[list[Member], list[StandInEngine]], None]) -> None:
    """The learner's part runs in a thread of its own."""
    spec = EngineSpec(str(folder), "float32", 64, 64, 0, True, False)
    engines = [StandInEngine(spec, GeneratorConfig()) for _ in range(2)]
    context = zmq.asyncio.Context()
    sockets = [bind(context, Network()) for _ in engines]
    servers = [
        asyncio.create_task(PublishServer(socket, engine, timeout_s=20).run())
        for engine, (socket, _) in zip(engines, sockets, strict=True)
    ]
    members = [Member(f"generator-{k}", endpoint, 1) for k, (_, endpoint) in enumerate(sockets)]
    try:
        await asyncio.to_thread(learner, members, engines)
    finally:
        for server in servers:
            server.cancel()
        await asyncio.wait(servers)
        context.destroy(linger=0)


Publishing = Callable[[PublishConfig, PreTrainedModel, list[Member], list[StandInEngine]], None]


def run(folder: Path, learner: Publishing, engine: str, transport: str, **settings: Any) -> None:
    """The learner's part, with two generators and the model that they begin with."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = PublishConfig(engine, transport, bucket_bytes=1_000, **settings)
    asyncio.run(with_two_generators(folder, partial(learner, config, model)))


def holds(engine: StandInEngine, tensors: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(parameter, tensors[name]) for name, parameter in engine._model.named_parameters())


def publish_and_compare(
    config: PublishConfig, model: PreTrainedModel, members: list[Member], engines: list[StandInEngine]
) -> None:
    session = PublishSession("learner-0", Network(), members, config, metas_of(model))
    tensors = perturbed(model)
    for version in range(3):
        figures = session.send(version, tensors)
        assert all(holds(engine, tensors) for engine in engines)
        assert figures["publish/bytes"] > 0
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        tensors["model.norm.weight"] += 1
    num_bytes = 2 * sum(tensor.nbytes for tensor in tensors.values())
    assert (figures["publish/bytes"] < num_bytes / 20) == (config.engine == "delta")
    session.close()


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(
    ("engine", "staged"), [("broadcast", True), ("sliced", False), ("sliced", True), ("delta", True)]
)
def test_every_generator_holds_what_was_published_whatever_travels_and_whatever_carries_it(
    folder: Path, transport: str, engine: str, staged: bool
) -> None:
    run(folder, publish_and_compare, engine, transport, staged=staged, timeout_s=20)


def publish_to_one_that_is_gone(
    config: PublishConfig, model: PreTrainedModel, members: list[Member], engines: list[StandInEngine]
) -> None:
    session = PublishSession("learner-0", Network(), members, config, metas_of(model))
    tensors = perturbed(model)
    session.send(0, tensors)
    engines[1]._receiver.leave()  # with nobody at its end of the group, as after a worker's death
    engines[1]._receiver.stage = lambda at_once=False: None  # type: ignore[method-assign]
    with pytest.raises(PublishError, match=r"^transfer: "):
        session.send(1, tensors)
    session.regroup(members[:1])
    tensors = perturbed(model)
    session.send(1, tensors)
    assert holds(engines[0], tensors)
    session.close()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_member_that_takes_nothing_is_an_error_by_the_deadline_and_the_others_go_on(
    folder: Path, transport: str
) -> None:
    run(folder, publish_to_one_that_is_gone, "sliced", transport, timeout_s=2)


def serves(engine: StandInEngine, tensors: dict[str, torch.Tensor]) -> bool:
    expected = merged_by_hand(tensors)
    pairs = [(parameter.double(), expected[name]) for name, parameter in engine._model.named_parameters()]
    return all(torch.allclose(held, due, rtol=0, atol=1e-6) for held, due in pairs)


def damage_once(receiver: ModelReceiver) -> None:
    """The first bucket that comes next arrives with another byte."""
    receive = receiver._receive_buckets

    def damaged(*args: Any) -> Iterator[Any]:
        receiver._receive_buckets = receive  # type: ignore[method-assign]
        for k, (bucket, buffer) in enumerate(receive(*args)):
            if k == 0:
                buffer[1] ^= 1
            yield bucket, buffer

    receiver._receive_buckets = damaged  # type: ignore[method-assign]


def publish_adapters(
    dtype: torch.dtype,
    config: PublishConfig,
    model: PreTrainedModel,
    members: list[Member],
    engines: list[StandInEngine],
) -> None:
    tensors = another_adapter(model, dtype=dtype)
    metas = {name: tensor.to("meta") for name, tensor in tensors.items()}
    whole_bytes = sum(tensor.nbytes for tensor in tensors.values())
    session = PublishSession("learner-0", Network(), members[:1], config, metas)
    num_bytes = []
    for version in range(3):
        tensors = another_adapter(model, dtype=dtype)
        num_bytes.append(session.send(version, tensors)["publish/bytes"])
        assert serves(engines[0], tensors)
    assert num_bytes[0] >= whole_bytes
    assert num_bytes[1] == num_bytes[2] < 0.05 * num_bytes[0]

    session.regroup(members)
    assert all(serves(engine, tensors) for engine in engines)  # the newcomer too
    session.send(3, another_adapter(model, dtype=dtype))  # all of it, as the group is new
    damage_once(engines[1]._receiver)
    tensors = another_adapter(model, dtype=dtype)
    assert session.send(4, tensors)["publish/bytes"] >= 2 * whole_bytes  # all of it once more
    assert all(serves(engine, tensors) for engine in engines)
    tensors = another_adapter(model, dtype=dtype)
    assert session.send(5, tensors)["publish/bytes"] == 2 * num_bytes[1]
    assert all(serves(engine, tensors) for engine in engines)
    session.close()


@pytest.mark.parametrize(
    ("transport", "staged", "dtype"),
    [("gloo", True, torch.float32), ("gloo", False, torch.bfloat16), ("nccl", True, torch.bfloat16)],
)
def test_an_adapter_alone_travels_and_every_generator_holds_what_it_makes_of_the_base_newcomers_too(
    folder: Path, transport: str, staged: bool, dtype: torch.dtype
) -> None:
    run(folder, partial(publish_adapters, dtype), "adapter", transport, staged=staged, timeout_s=20)


def publish_to_one_that_gets_it_damaged(
    config: PublishConfig, model: PreTrainedModel, members: list[Member], engines: list[StandInEngine]
) -> None:
    session = PublishSession("learner-0", Network(), members, config, metas_of(model))
    session.send(0, perturbed(model))
    for version, engine in enumerate(engines, start=1):
        damage_once(engine._receiver)
        tensors = perturbed(model)
        session.send(version, tensors)
        assert all(holds(engine, tensors) for engine in engines)
    session.close()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_whichever_member_gets_a_damaged_bucket_all_hold_the_version_after_the_second_try(
    folder: Path, transport: str
) -> None:
    run(folder, publish_to_one_that_gets_it_damaged, "sliced", transport, timeout_s=5)
