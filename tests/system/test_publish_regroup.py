"""The publish group changes while its generators serve: real engines in real processes, killed and started again."""

from __future__ import annotations

import copy
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from asyncrl.config.schema import GeneratorConfig, PublishConfig
from asyncrl.errors import PublishError
from asyncrl.publish.groups import nccl as nccl_group
from asyncrl.publish.session import PublishSession
from asyncrl.publish.vllm.receiver import VllmReceiver
from asyncrl.publish.vllm.staging import Staging
from asyncrl.transport.sockets import Network
from bench.support.generators import GeneratorProcess
from tests.support import nccl
from tests.support.models import random_qwen3
from tests.support.publish import (
    PROMPT,
    TOLERANCE,
    assert_every_token_is_of_its_version,
    largest_difference,
    metas_of,
    perturbed,
    sampling,
)

pytestmark = pytest.mark.system

CONFIG = GeneratorConfig(kv_cache_bytes=32 << 20)
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_qwen3(tmp_path_factory.mktemp("model"), tied=True)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def receive_through(gate: Path) -> None:
    """A transfer waits in the worker while the gate is there, and says so by a second file."""
    nccl.install()
    receive = VllmReceiver._receive

    def receive_later(self: VllmReceiver, at_once: bool) -> Staging:
        while gate.exists():
            gate.with_suffix(".reached").touch()
            time.sleep(0.01)
        return receive(self, at_once)

    VllmReceiver._receive = receive_later  # type: ignore[method-assign]


def wait_for(file: Path) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not file.exists():
        assert time.monotonic() < deadline_s, f"{file.name} did not come"
        time.sleep(0.01)


def assert_serves(generator: GeneratorProcess, version: int, model: PreTrainedModel) -> None:
    completions = generator.sample(f"check-{version}", PROMPT, sampling(4, 40))
    assert {v for completion in completions for v in completion.versions} == {version}
    assert largest_difference(model, completions) < TOLERANCE


def publish_while_32_requests_decode(
    generator: GeneratorProcess, session: PublishSession, model: PreTrainedModel, num_publishes: int
) -> None:
    """Version 0 is served already."""
    policies = {0: copy.deepcopy(model)}
    spanned = 0
    for wave in range(num_publishes // 3):
        for k in range(32):
            generator.submit(f"wave-{wave}-{k}", PROMPT, sampling(1, 60, seed=100 * wave + k))
        for _ in range(3):
            tensors = perturbed(model, scale=0.01)
            policies[len(policies)] = copy.deepcopy(model)
            session.send(len(policies) - 1, tensors)
        completions = [generator.result(f"wave-{wave}-{k}")[0] for k in range(32)]
        assert_every_token_is_of_its_version(completions, policies)
        spanned += sum(len(set(completion.versions)) > 1 for completion in completions)
    assert spanned > 0


@pytest.mark.parametrize("transport", ["gloo", "nccl"])
def test_publishes_lose_and_mix_nothing_a_dead_generator_is_dropped_and_one_that_joins_catches_up(
    folder: Path, stack: ExitStack, transport: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nccl_group, "communicator", nccl.StandInCommunicator)
    gate = tmp_path / "gate"
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    first, second = (
        stack.enter_context(GeneratorProcess(f"generator-{k}", folder, CONFIG, prepare=nccl.install)) for k in range(2)
    )
    config = PublishConfig("broadcast", transport, timeout_s=10, bucket_bytes=100_000, kv_cache="recompute")
    session = PublishSession("learner-0", Network(), [first.member, second.member], config, metas_of(model))
    session.send(0, perturbed(model))
    assert_serves(first, 0, model)
    assert_serves(second, 0, model)
    publish_while_32_requests_decode(first, session, model, num_publishes=30)

    second.kill()
    through_gate = partial(receive_through, gate)
    third = stack.enter_context(GeneratorProcess("generator-1", folder, CONFIG, prepare=through_gate))
    first.submit("in flight", PROMPT, sampling(8, 55))
    session.regroup([first.member])
    session.send(31, perturbed(model))
    assert {v for completion in first.result("in flight") for v in completion.versions} <= {30, 31}
    assert_serves(first, 31, model)

    first.submit("undisturbed", PROMPT, sampling(8, 55))
    session.regroup([first.member, third.member])
    assert {v for completion in first.result("undisturbed") for v in completion.versions} == {31}
    assert_serves(third, 31, model)
    session.send(32, perturbed(model))
    assert_serves(first, 32, model)
    assert_serves(third, 32, model)

    served = copy.deepcopy(model)
    tensors = perturbed(model)
    gate.touch()
    with ThreadPoolExecutor(1) as executor:
        sending = executor.submit(session.send, 33, tensors)
        wait_for(gate.with_suffix(".reached"))
        third.signal(signal.SIGSTOP)
        with pytest.raises(PublishError, match=r"^transfer: .*; generator-1 did not answer then$"):
            sending.result()
    assert_serves(first, 32, served)
    session.regroup([first.member])
    session.send(33, tensors)
    assert_serves(first, 33, model)
    session.close()


def fail_to_switch() -> None:
    """Before anything is received, as a worker that is out of memory does."""
    nccl.install()

    def take_over(self: VllmReceiver, staged: bool) -> None:
        raise MemoryError("no room")

    VllmReceiver.take_over = take_over  # type: ignore[method-assign]


def test_a_generator_that_fails_while_others_wait_in_nccl_leaves_nobody_waiting_beyond_the_deadline(
    folder: Path, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nccl_group, "communicator", nccl.StandInCommunicator)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    good = stack.enter_context(GeneratorProcess("generator-0", folder, CONFIG, prepare=nccl.install))
    bad = stack.enter_context(GeneratorProcess("generator-1", folder, CONFIG, prepare=fail_to_switch))
    config = PublishConfig("broadcast", "nccl", timeout_s=5, staged=False)
    session = PublishSession("learner-0", Network(), [good.member, bad.member], config, metas_of(model))
    tensors = perturbed(model)
    with pytest.raises(PublishError, match=r"no progress for 5 s|within 5 s"):
        session.send(0, tensors)
    session.regroup([good.member])
    session.send(0, tensors)
    assert_serves(good, 0, model)
    session.close()
