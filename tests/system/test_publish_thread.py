"""Versions are published beside training: a real vLLM, the real replay server, and the learner's two threads."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from asyncrl.config.schema import Config, GeneratorConfig
from asyncrl.errors import DeadlineError, PublishError
from asyncrl.learn import publisher as publisher_module
from asyncrl.learn.publish_thread import PublishThread
from asyncrl.learn.publisher import Publisher
from asyncrl.publish.groups import nccl as nccl_group
from asyncrl.publish.vllm.receiver import VllmReceiver
from asyncrl.publish.vllm.staging import Staging
from asyncrl.replay.learner_client import LearnerClient
from asyncrl.transport.control_link import ControlLink
from asyncrl.transport.messages.rollouts import Hello, Serving
from bench.support.generators import GeneratorProcess
from tests.support import nccl
from tests.support.models import random_qwen3
from tests.support.publish import PROMPT, TOLERANCE, largest_difference, metas_of, perturbed, sampling
from tests.support.replay import PATIENCE_S, Served, grants, learner, serving, small_config
from tests.support.wire import Peer, peer

pytestmark = pytest.mark.system


@contextmanager
def publishing(
    served: Served, config: Config, metas: dict[str, torch.Tensor], transport: str = "gloo"
) -> Iterator[tuple[PublishThread, ControlLink]]:
    """Learner rank 0's thread, and its link, whose `stopping` the test may set."""
    config.publish.engine, config.publish.transport = "broadcast", transport
    link = ControlLink("learner-0", served.network, served.control.endpoint, 600.0, 600.0)
    client = LearnerClient("learner-0-publisher", served.network, served.endpoint, link.stopping)
    publisher = Publisher(config, served.network, client, link, metas)
    try:
        yield PublishThread(publisher, link, PATIENCE_S, beside_training=transport == "gloo"), link
    finally:
        link.close()


def receive_when(open_gate: Path) -> None:
    """A transfer waits in the worker until this file exists."""
    receive = VllmReceiver._receive

    def receive_later(self: VllmReceiver, at_once: bool) -> Staging:
        while not open_gate.exists():
            time.sleep(0.01)
        return receive(self, at_once)

    VllmReceiver._receive = receive_later  # type: ignore[method-assign]


def hello(dealer: Peer, generator: GeneratorProcess) -> None:
    dealer.send(Hello(generator.member.control_endpoint, 1, 4))


def versions(generator: GeneratorProcess, name: str) -> set[int]:
    return {v for completion in generator.sample(name, PROMPT, sampling(2, 20)) for v in completion.versions}


def test_the_learner_goes_on_while_a_version_is_published_and_hears_of_what_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher_module, "DEATH_MARGIN_S", 0.5)
    folder, gate = random_qwen3(tmp_path / "model", tied=True), tmp_path / "open"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = small_config()
    config.run.heartbeat_timeout_s = 0.5
    gate.touch()
    start = partial(GeneratorProcess, "generator-0", folder, GeneratorConfig(kv_cache_bytes=32 << 20))
    with ExitStack() as stack:
        first, second = (stack.enter_context(start(prepare=partial(receive_when, gate))) for _ in range(2))
        served = stack.enter_context(serving(config))
        dealer = stack.enter_context(peer("generator-0", served.endpoint))
        client = stack.enter_context(learner(served))
        thread, _ = stack.enter_context(publishing(served, config, metas_of(model)))
        hello(dealer, first)
        client.wait_for_generators(1, PATIENCE_S)
        thread.publish(0, perturbed(model), evaluate=False)
        thread.wait()
        assert versions(first, "served") == {0}

        gate.unlink()
        thread.publish(1, perturbed(model), evaluate=True)
        dealer.send(Serving())
        training = grants(dealer, 4)
        assert [grant.index for grant in training] == [0, 1, 2, 3]  # (v + η + 1)·B with v = 0
        assert versions(first, "old") == {0}
        gate.touch()
        thread.wait()
        assert versions(first, "new") == {1}
        assert thread.figures["publish/bytes"] > 0

        first.kill()
        hello(dealer, second)
        thread.check("training")
        for k in range(1000):
            completions = second.sample(f"newcomer-{k}", PROMPT, sampling(2, 20))
            if {v for completion in completions for v in completion.versions} == {1}:
                break
        assert largest_difference(model, completions) < TOLERANCE

        gate.unlink()
        thread.publish(2, perturbed(model), evaluate=False)
        second.signal(signal.SIGKILL)
        client.while_waiting = partial(thread.check, "waiting for the batch")
        with pytest.raises(PublishError, match="generator-0"):
            client.batch(0, PATIENCE_S)
        with pytest.raises(PublishError, match="generator-0"):
            thread.close()


def test_over_nccl_training_waits_for_a_publish_and_newcomers_wait_until_training_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nccl_group, "communicator", nccl.StandInCommunicator)
    folder = random_qwen3(tmp_path / "model", tied=True)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = small_config()
    start = partial(GeneratorProcess, model_folder=folder, config=GeneratorConfig(kv_cache_bytes=32 << 20))
    with ExitStack() as stack:
        first, second = (stack.enter_context(start(f"generator-{k}", prepare=nccl.install)) for k in range(2))
        served = stack.enter_context(serving(config))
        dealers = [stack.enter_context(peer(f"generator-{k}", served.endpoint)) for k in range(2)]
        client = stack.enter_context(learner(served))
        thread, _ = stack.enter_context(publishing(served, config, metas_of(model), "nccl"))
        hello(dealers[0], first)
        client.wait_for_generators(1, PATIENCE_S)
        thread.publish(0, perturbed(model), evaluate=False)
        assert versions(first, "served") == {0}

        hello(dealers[1], second)
        client.wait_for_generators(2, PATIENCE_S)
        time.sleep(1.0)  # training
        assert versions(second, "training") == {-1}
        thread.check("waiting for the batch")
        assert versions(second, "waiting") == {0}
        thread.publish(1, perturbed(model), evaluate=False)
        assert versions(first, "next") == versions(second, "next") == {1}
        thread.close()


def test_a_learner_without_generators_hears_whom_its_thread_waited_for() -> None:
    config = small_config()
    config.run.startup_timeout_s = 0.1
    with serving(config) as served, publishing(served, config, {}) as (thread, _), learner(served) as client:
        client.while_waiting = partial(thread.check, "waiting for the batch")
        thread.publish(0, {}, evaluate=False)
        with pytest.raises(DeadlineError, match="for a generator to come back; the launcher"):
            client.batch(0, PATIENCE_S)


def test_a_run_that_is_told_to_stop_does_not_wait_for_its_publish() -> None:
    config = small_config()
    with serving(config) as served, publishing(served, config, {}) as (thread, link):
        thread.publish(0, {}, evaluate=False)
        link.stopping.set()
        thread.close()
        assert not [running for running in threading.enumerate() if running.name == "publish"]
