"""Faults in each phase of a publish: how soon they are noticed, and how soon the version is served all the same.

    python bench/publish/faults.py --repeats 20

One generator stays (`survivor`), and one is struck (`victim`): its vLLM worker, its engine core or its own process is
killed or frozen while it is held in the rendezvous, in the transfer or in the switch; or the learner that sends is.
Also: a bucket that arrives changed once, and always; a generator that never comes, and one that never answers. After
each fault the version has to be served by all that are left, and its logprobs have to be those of a transformers
forward. See bench/README.md.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import multiprocessing.connection
import os
import signal
import socket
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import torch
from transformers import AutoModelForCausalLM

from asyncrl.config.schema import GeneratorConfig, PublishConfig
from asyncrl.errors import PublishError
from asyncrl.publish.session import PublishSession
from asyncrl.transport.messages.learning import Member
from asyncrl.transport.sockets import Network
from asyncrl.types import Completion
from bench.publish.fault_points import PHASES, flipped, held, install, wait_until_held
from bench.support.generators import GeneratorProcess, fresh_context
from bench.support.processes import tree
from tests.support import nccl
from tests.support.models import random_qwen3
from tests.support.publish import PROMPT, TOLERANCE, largest_difference, metas_of, perturbed, sampling

TIMEOUT_S = 5.0
"""publish.timeout_s here: detection may take no longer than twice this."""
DETECTION_LIMIT_S, RECOVERY_LIMIT_S = 10.0, 30.0
NEVER_S = 120.0
"""A fault that is not noticed by then has made a hang."""
SIGNALS = {"kill": signal.SIGKILL, "freeze": signal.SIGSTOP}
VICTIMS = ("worker", "engine core", "generator", "learner")


class Faults:
    """A survivor, a victim that another one replaces after each fault, and a learner."""

    def __init__(self, folder: Path, transport: str) -> None:
        nccl.install()
        self._folder = folder
        self._model_folder = random_qwen3(folder / "model", tied=True)
        self._model = AutoModelForCausalLM.from_pretrained(self._model_folder, dtype=torch.float32)
        self._initial = copy.deepcopy(self._model.state_dict())
        self._config = PublishConfig("broadcast", transport, timeout_s=TIMEOUT_S, bucket_bytes=100_000)
        self._num_samples = 0
        self._survivor = self._start("survivor")
        self._victim, self._next_victim = self._start("victim"), self._start("victim")
        members = [self._survivor.member, self._victim.member]
        self._session = PublishSession("learner-0", Network(), members, self._config, metas_of(self._model))
        self._version = 0
        self._session.send(0, self._new_weights())

    def close(self) -> None:
        self._session.close()
        for generator in (self._survivor, self._victim, self._next_victim):
            generator.kill()

    def strike(self, victim: str, how: str, phase: str) -> tuple[float | None, float]:
        """One fault. Returns seconds until the learner notices, and until all that are left serve the version."""
        if victim == "learner":
            return self._strike_learner(how, phase)
        pid = self._pid_of(victim)
        with held("victim", self._folder, phase):
            publish = self._publish_later(rejoin=phase == "rendezvous")
            wait_until_held("victim", self._folder, phase)
            os.kill(pid, SIGNALS[how])
            start_s = time.monotonic()
        return self._noticed_and_mended(publish, start_s)

    def flip_once(self) -> tuple[float | None, float]:
        """A bucket that arrives changed is sent once more."""
        with flipped("victim", self._folder, always=False):
            start_s = time.monotonic()
            self._publish_later(rejoin=False).result(NEVER_S)
        self._assert_serves(self._victim)
        return None, time.monotonic() - start_s

    def flip_always(self) -> tuple[float | None, float]:
        start_s = time.monotonic()
        with flipped("victim", self._folder, always=True):
            publish = self._publish_later(rejoin=False)
            wait([publish], NEVER_S)
        return self._noticed_and_mended(publish, start_s)

    def never_comes(self) -> tuple[float | None, float]:
        """A third generator is announced, and does not exist."""
        return self._join_a_third("tcp://127.0.0.1:9")

    def never_answers(self) -> tuple[float | None, float]:
        """A third generator is announced; its port takes connections, and nothing more happens there."""
        with socket.create_server(("127.0.0.1", 0)) as silent:
            return self._join_a_third(f"tcp://127.0.0.1:{silent.getsockname()[1]}")

    def _join_a_third(self, endpoint: str) -> tuple[float | None, float]:
        members = [self._survivor.member, self._victim.member, Member("third", endpoint, 1)]
        start_s = time.monotonic()
        with ThreadPoolExecutor(1) as executor:
            return self._noticed_and_mended(executor.submit(self._session.regroup, members), start_s)

    # ── how it is mended ──

    def _noticed_and_mended(self, publish: Future[None], start_s: float) -> tuple[float | None, float]:
        """The learner's error, then the group without the victim and the version once more."""
        try:
            publish.result(NEVER_S)
        except (PublishError, RuntimeError):
            pass
        else:
            raise AssertionError("the fault was not noticed")
        noticed_s = time.monotonic() - start_s
        self._session.regroup([self._survivor.member])
        self._send()
        self._assert_serves(self._survivor)
        mended_s = time.monotonic() - start_s
        self._victim.kill()
        self._victim, self._next_victim = self._next_victim, self._start("victim")
        self._session.regroup([self._survivor.member, self._victim.member])
        self._assert_serves(self._victim)
        return noticed_s, mended_s

    def _strike_learner(self, how: str, phase: str) -> tuple[float | None, float]:
        """Another learner publishes to the survivor and is struck; ours goes on, as one that was started again."""
        self._session.close()
        context = fresh_context()
        pipe, theirs = context.Pipe()
        arguments = (self._model_folder, self._survivor.member, self._config, self._version + 1, phase, theirs)
        learner = context.Process(target=_publish_when_told, args=arguments)
        learner.start()
        assert pipe.poll(NEVER_S)
        pipe.recv()
        with held("survivor", self._folder, phase):
            pipe.send("go")
            wait_until_held("survivor", self._folder, phase)
            assert learner.pid is not None
            os.kill(learner.pid, SIGNALS[how])
            start_s = time.monotonic()
        versions = {v for one in self._sample(self._survivor) for v in one.versions}
        assert versions in ({self._version}, {self._version + 1}), f"it serves {versions}"
        self._version += 2
        self._new_weights()
        members = [self._survivor.member, self._victim.member]
        self._session = PublishSession("learner-0", Network(), members, self._config, metas_of(self._model))
        self._send()
        self._assert_serves(self._survivor)
        self._assert_serves(self._victim)
        mended_s = time.monotonic() - start_s
        learner.kill()
        learner.join()
        return None, mended_s

    # ── parts ──

    def _start(self, name: str) -> GeneratorProcess:
        config = GeneratorConfig(kv_cache_bytes=32 << 20)
        return GeneratorProcess(name, self._model_folder, config, prepare=partial(install, name, self._folder))

    def _new_weights(self) -> dict[str, torch.Tensor]:
        """Always as near to the first ones: float32 logprobs of weights that wander off are no longer exact."""
        self._model.load_state_dict(self._initial)
        return perturbed(self._model)

    def _publish_later(self, rejoin: bool) -> Future[None]:
        self._version += 1
        self._new_weights()
        executor = ThreadPoolExecutor(1)
        publish = executor.submit(self._rejoin_and_send if rejoin else self._send)
        executor.shutdown(wait=False)
        return publish

    def _rejoin_and_send(self) -> None:
        self._session.regroup([self._survivor.member, self._victim.member])
        self._send()

    def _send(self) -> None:
        self._session.send(self._version, {name: p.detach().clone() for name, p in self._model.named_parameters()})

    def _sample(self, generator: GeneratorProcess) -> list[Completion]:
        self._num_samples += 1
        return generator.sample(f"check-{self._num_samples}", PROMPT, sampling(2, 20))

    def _assert_serves(self, generator: GeneratorProcess) -> None:
        completions = self._sample(generator)
        assert {v for completion in completions for v in completion.versions} == {self._version}
        assert largest_difference(self._model, completions) < TOLERANCE

    def _pid_of(self, victim: str) -> int:
        """The engine core is the child of the generator that has children of its own: vLLM's workers."""
        generator = self._victim.process.pid
        assert generator is not None
        families = [list(tree(child)) for child in tree(generator) if child != generator]
        core, worker = next(family for family in families if len(family) > 1)[:2]
        return {"generator": generator, "engine core": core, "worker": worker}[victim]


def _publish_when_told(
    model_folder: Path,
    member: Member,
    config: PublishConfig,
    version: int,
    phase: str,
    pipe: multiprocessing.connection.Connection,
) -> None:
    """A learner's process; the phase that it is struck in begins when it is told to go."""
    nccl.install()
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)

    def wait_for_word() -> None:
        pipe.send("ready")
        pipe.recv()

    if phase == "rendezvous":
        wait_for_word()
    session = PublishSession("learner-1", Network(), [member], config, metas_of(model))
    if phase != "rendezvous":
        wait_for_word()
    session.send(version, perturbed(model))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--transport", choices=["gloo", "nccl"], default="gloo", help="nccl: a stand-in, without a GPU")
    arguments = parser.parse_args()
    seconds: dict[str, list[tuple[float | None, float]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        faults = Faults(Path(folder), arguments.transport)
        kinds: dict[str, Callable[[], tuple[float | None, float]]] = {
            f"{victim}, {how}, {phase}": partial(faults.strike, victim, how, phase)
            for victim, how, phase in itertools.product(VICTIMS, SIGNALS, PHASES)
        }
        kinds["a bucket flipped once"] = faults.flip_once
        kinds["every bucket flipped"] = faults.flip_always
        kinds["a generator that never comes"] = faults.never_comes
        kinds["a generator that never answers"] = faults.never_answers
        for number, (kind, fault) in itertools.product(range(arguments.repeats), kinds.items()):
            seconds[kind].append(fault())
            print(number + 1, kind, *seconds[kind][-1], flush=True)
        faults.close()
    print_table(seconds)


def print_table(seconds: dict[str, list[tuple[float | None, float]]]) -> None:
    print("| Fault | Times | Noticed, s (median, most) | Served all the same, s (median, most) |\n|---|---|---|---|")
    for kind, times in seconds.items():
        noticed = [first for first, _ in times if first is not None]
        mended = [second for _, second in times]
        assert max(noticed, default=0.0) <= DETECTION_LIMIT_S, kind
        assert max(mended) <= RECOVERY_LIMIT_S, kind
        first = f"{statistics.median(noticed):.1f}, {max(noticed):.1f}" if noticed else "–"
        print(f"| {kind} | {len(times)} | {first} | {statistics.median(mended):.1f}, {max(mended):.1f} |")


if __name__ == "__main__":
    main()
