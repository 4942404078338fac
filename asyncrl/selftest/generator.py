"""A generator of a selftest: a real engine, whichever `generator.engine` names, behind a real publish server.

Consumes   requests; publish commands of learner 0.
Produces   completions; what the engine says of itself.
Waits for  the engine to come up (run.startup_timeout_s) and for each request's completions (replay.lease_timeout_s).
Unblocked  by the launcher, which kills the process at the end.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

import psutil
import zmq.asyncio

from asyncrl import devices
from asyncrl.cluster.roles import engine_spec
from asyncrl.config.engines import engine_of
from asyncrl.config.schema import Config
from asyncrl.generate.engines.base import Engine, Sampling
from asyncrl.generate.engines.registry import engine_class
from asyncrl.generate.publish_server import PublishServer
from asyncrl.selftest.process import Memory, Process, peak_host_bytes
from asyncrl.transport.messages.learning import Member
from asyncrl.transport.sockets import Network, bind
from asyncrl.types import Completion

Answer = TypeVar("Answer")


class Generator(Process):
    """The engine runs in an event loop of its own thread; methods may be called from any other, many at once.

    Args:
        config: with model.path, model.dtype and publish.* resolved.
    """

    def __init__(self, name: str, config: Config, on_cpu: bool, network: Network) -> None:
        super().__init__()
        self._name = name
        self._config = config
        self._on_cpu = on_cpu
        self._network = network
        self._engine: Engine | None = None
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="engine", daemon=True).start()

    def start(self) -> Member:
        """Starts the engine and its publish server."""
        return self._run(self._start(), self._config.run.startup_timeout_s)

    def sample(self, request_id: str, prompt: list[int], sampling: Sampling) -> list[Completion]:
        assert self._engine is not None
        answer = self._engine.sample(request_id, prompt, sampling)
        return self._run(answer, self._config.replay.lease_timeout_s)

    def kernels(self) -> dict[str, str]:
        assert self._engine is not None
        return self._run(self._engine.kernels(), self._config.publish.timeout_s)

    def memory(self) -> Memory:
        """Of its largest process: a tensor-parallel worker, where the engine has workers."""
        this = psutil.Process()
        children = this.children(recursive=True)
        peak_bytes = max(map(peak_host_bytes, children or [this])) - self._baseline_bytes
        return Memory(peak_bytes, 0 if self._on_cpu else devices.used_bytes())

    def stop(self) -> None:
        if self._engine is not None:
            self._run(self._close(self._engine), self._config.run.stop_timeout_s)
        self._loop.call_soon_threadsafe(self._loop.stop)

    async def _start(self) -> Member:
        spec = engine_spec(self._config, self._on_cpu)
        self._engine = engine_class(engine_of(self._config.generator, self._name))(spec, self._config.generator)
        await self._engine.warm_up()
        socket, endpoint = bind(zmq.asyncio.Context.instance(), self._network)
        server = PublishServer(socket, self._engine, self._config.publish.timeout_s)
        self._serving = asyncio.create_task(server.run())
        self._serving.add_done_callback(lambda _: server.close())  # its peers see that it has ended
        return Member(self._name, endpoint, self._config.generator.tensor_parallel)

    async def _close(self, engine: Engine) -> None:
        self._serving.cancel()
        engine.shutdown()

    def _run(self, coroutine: Coroutine[Any, Any, Answer], timeout_s: float) -> Answer:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout_s)
