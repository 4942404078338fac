"""A generator of a selftest: a real engine, whichever `generator.engine` names, behind a real publish server.

Consumes   requests; publish commands of learner 0.
Produces   completions; what the engine says of itself.
Waits for  the engine to come up (run.startup_timeout_s), for each request's completions (replay.lease_timeout_s), for
           cancelled requests (publish.timeout_s), and for the engine to close (run.stop_timeout_s).
Unblocked  by the launcher, which kills the process at the end.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

import psutil
import zmq.asyncio

from asyncrl import devices
from asyncrl.cluster.roles import engine_spec
from asyncrl.config.engines import engine_of
from asyncrl.config.schema import Config
from asyncrl.errors import DeadlineError
from asyncrl.generate.engines.base import Engine
from asyncrl.generate.engines.registry import engine_class
from asyncrl.generate.publish_server import PublishServer
from asyncrl.selftest.process import Memory, Process, peak_host_bytes
from asyncrl.selftest.system import Request
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
        self._asking: set[asyncio.Task[Any]] = set()
        """Requests in the engine."""
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="engine", daemon=True).start()

    def start(self) -> Member:
        """Starts the engine and its publish server."""
        return self._run(self._start(), self._config.run.startup_timeout_s)

    def sample(self, request: Request) -> list[Completion]:
        return self._run(self._ask(request), self._config.replay.lease_timeout_s)

    def sample_together(self, requests: list[Request]) -> list[list[Completion]]:
        """The completions of each; all are asked for at once."""
        return self._run(self._sample_together(requests), self._config.replay.lease_timeout_s)

    def refusal(self, request: Request) -> str | None:
        """The error that a request ends in, its class first; None = it was answered."""
        try:
            self._run(self._sample_together([request]), self._config.replay.lease_timeout_s)
        except TimeoutError:
            raise  # neither answered nor refused
        except Exception as error:  # noqa: BLE001 - whatever an engine raises is what is asked for
            return f"{type(error).__name__}: {error}"
        return None

    def cancel(self, requests: list[Request], after_s: float) -> int:
        """Asks for all at once and cancels after some time what has not ended.

        Returns:
            How many have not ended publish.timeout_s later.
        """
        limit_s = self._config.publish.timeout_s
        return self._run(self._cancel(requests, after_s, limit_s), 2 * limit_s + after_s)

    def is_dead(self) -> bool:
        assert self._engine is not None
        return self._engine.dead

    def kernels(self) -> dict[str, str]:
        assert self._engine is not None
        return self._run(self._engine.kernels(), self._config.publish.timeout_s)

    def cpu_s(self) -> float:
        """CPU seconds so far, those of the engine's processes included."""
        this = psutil.Process()
        times = [process.cpu_times() for process in [this, *this.children(recursive=True)]]
        return sum(one.user + one.system for one in times)

    def memory(self) -> Memory:
        """Of its largest process: a tensor-parallel worker, where the engine has workers."""
        this = psutil.Process()
        children = this.children(recursive=True)
        peak_bytes = max(map(peak_host_bytes, children or [this])) - self._baseline_bytes
        return Memory(peak_bytes, 0 if self._on_cpu else devices.used_bytes())

    def stop(self) -> None:
        """Closes the engine.

        Raises:
            DeadlineError: it did not close in time.
        """
        engine, self._engine = self._engine, None
        if engine is None:
            return
        limit_s = self._config.run.stop_timeout_s
        try:
            self._run(self._close(engine), limit_s)
        except TimeoutError as error:
            raise DeadlineError("the engine to close", limit_s, f"shutdown() of {type(engine).__name__}") from error

    async def _start(self) -> Member:
        spec = engine_spec(self._config, self._on_cpu)
        self._engine = engine_class(engine_of(self._config.generator, self._name))(spec, self._config.generator)
        await self._engine.warm_up()
        socket, endpoint = bind(zmq.asyncio.Context.instance(), self._network)
        server = PublishServer(socket, self._engine, self._config.publish.timeout_s)
        self._serving = asyncio.create_task(server.run())
        self._serving.add_done_callback(lambda _: server.close())  # its peers see that it has ended
        return Member(self._name, endpoint, self._config.generator.tensor_parallel)

    async def _sample_together(self, requests: list[Request]) -> list[list[Completion]]:
        return list(await asyncio.gather(*map(self._ask, requests)))

    async def _cancel(self, requests: list[Request], after_s: float, limit_s: float) -> int:
        tasks = [asyncio.create_task(self._ask(request)) for request in requests]
        await asyncio.sleep(after_s)
        for task in tasks:
            task.cancel()
        _, running = await asyncio.wait(tasks, timeout=limit_s)
        return len(running)

    async def _ask(self, request: Request) -> list[Completion]:
        assert self._engine is not None
        task = asyncio.current_task()
        assert task is not None
        self._asking.add(task)
        try:
            return await self._engine.sample(f"selftest-{secrets.token_hex(8)}", request.prompt, request.sampling)
        finally:
            self._asking.discard(task)

    async def _close(self, engine: Engine) -> None:
        """As a run does: what is asked for is cancelled before."""
        self._serving.cancel()
        asking = list(self._asking)
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        engine.shutdown()

    def _run(self, coroutine: Coroutine[Any, Any, Answer], timeout_s: float) -> Answer:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout_s)
