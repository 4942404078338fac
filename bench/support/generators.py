"""Generators in processes of their own, as the launcher's are: a real engine and its publish server, without Ray.

Benchmarks and tests publish to them, sample from them and kill them.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import multiprocessing.connection
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import zmq.asyncio

from asyncrl.config.schema import GeneratorConfig
from asyncrl.generate.engines.base import EngineSpec, Sampling
from asyncrl.transport.messages.learning import Member
from asyncrl.transport.sockets import Network, bind
from asyncrl.types import Completion

DEADLINE_S = 480.0
PUBLISH_TIMEOUT_S = 60.0

PRELOAD = [
    "asyncrl.learn.checkpoint",
    "transformers.models.qwen3.modeling_qwen3",
    "asyncrl.generate.engines.vllm",
    "peft",
]
"""What the one fork server of this process imports, so that each process starts in a fraction of a second. A process
that has already computed with torch must not be forked, and vLLM forks its engine."""


def fresh_context() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


class GeneratorProcess:
    """One generator; use it as a context manager. It is up once `member` has been read.

    Args:
        prepare: called in the new process first; what it patches holds in vLLM's workers too, which are forks.
    """

    def __init__(
        self,
        name: str,
        model_folder: Path,
        config: GeneratorConfig,
        max_model_len: int = 64,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        context = fresh_context()
        self._name = name
        self._tensor_parallel = config.tensor_parallel
        self._pipe, theirs = context.Pipe()
        spec = EngineSpec(str(model_folder), "float32", max_model_len, 64, 0, True, False)
        self.process = context.Process(target=_run, args=(spec, config, theirs, prepare), daemon=False)
        self.process.start()
        theirs.close()
        self._member: Member | None = None
        self._results: dict[str, list[Completion]] = {}

    def __enter__(self) -> GeneratorProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._pipe.close()

    @property
    def member(self) -> Member:
        if self._member is None:
            self._member = Member(self._name, self._receive(), self._tensor_parallel)
        return self._member

    def submit(self, request_id: str, prompt: list[int], sampling: Sampling) -> None:
        """Starts a request."""
        self._pipe.send((request_id, prompt, sampling))

    def result(self, request_id: str) -> list[Completion]:
        """What became of a request; waits for it."""
        while request_id not in self._results:
            done, outcome = self._receive()
            if isinstance(outcome, str):
                raise RuntimeError(f"{self._name}, request {done}: {outcome}")
            self._results[done] = outcome
        return self._results.pop(request_id)

    def sample(self, request_id: str, prompt: list[int], sampling: Sampling) -> list[Completion]:
        self.submit(request_id, prompt, sampling)
        return self.result(request_id)

    def signal(self, number: signal.Signals) -> None:
        """To the generator and all its children: its event loop, the engine core, vLLM's workers."""
        assert self.process.pid is not None
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        with suppress(ProcessLookupError):  # its children may outlive it
            self.signal(signal.SIGKILL)
        self.process.join(DEADLINE_S)

    def _receive(self) -> Any:
        if not self._pipe.poll(DEADLINE_S):
            raise TimeoutError(f"{self._name} said nothing for {DEADLINE_S:.0f} s")
        return self._pipe.recv()


def _run(
    spec: EngineSpec,
    config: GeneratorConfig,
    pipe: multiprocessing.connection.Connection,
    prepare: Callable[[], None] | None,
) -> None:
    os.setpgrp()
    if prepare is not None:
        prepare()
    asyncio.run(_serve(spec, config, pipe))


async def _serve(spec: EngineSpec, config: GeneratorConfig, pipe: multiprocessing.connection.Connection) -> None:
    from asyncrl.generate.engines.registry import engine_class
    from asyncrl.generate.publish_server import PublishServer

    engine = engine_class(config.engine)(spec, config)
    await engine.warm_up()
    socket, endpoint = bind(zmq.asyncio.Context.instance(), Network())

    async def answer(request_id: str, prompt: list[int], sampling: Sampling) -> None:
        try:
            outcome: list[Completion] | str = await engine.sample(request_id, prompt, sampling)
        except Exception as error:  # noqa: BLE001 - the other process raises it
            outcome = repr(error)
        pipe.send((request_id, outcome))

    async def requests() -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                group.create_task(answer(*await asyncio.to_thread(pipe.recv)))

    async def watch() -> None:
        while not engine.dead:
            await asyncio.sleep(0.1)
        raise RuntimeError("the inference engine died")

    pipe.send(endpoint)
    await asyncio.gather(PublishServer(socket, engine, PUBLISH_TIMEOUT_S).run(), requests(), watch())
