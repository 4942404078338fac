"""SGLang's processes: how they are started, called by name, and seen to be dead.

    this process        TokenizerManager ──request──▶ scheduler, one a tensor-parallel rank ──tokens──▶ TokenizerManager
                        call(method) ────────────────▶ PublishingScheduler.method on every rank

SGLang's own Engine would besides start a process that makes text of tokens, take over the signals of this one, and end
it when a child fails. Here a generator sees a dead child by `dead`, and ends itself.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import multiprocessing.connection
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.context import ForkContext
from typing import Any

import zmq
import zmq.asyncio

from asyncrl.errors import PublishError, RunError
from asyncrl.generate.engines.sglang import imports
from asyncrl.generate.engines.sglang.imports import GenerateReqInput, RpcReqInput, async_sock_recv, async_sock_send
from asyncrl.generate.engines.sglang.scheduler import run_scheduler_process

log = logging.getLogger(__name__)

DEATH_POLL_S = 0.1


class _Fork(ForkContext):
    """In place of `multiprocessing` where SGLang starts its processes, on a CPU alone.

    It forces `spawn`, which imports everything once more, and for the whole process. Fork is safe here for the reason
    that `vllm_cpu.py` gives. Expiry: SGLang 0.5.23; when its start method can be chosen.
    """

    def set_start_method(self, method: str | None, force: bool = False) -> None:
        """Fork it stays."""


class _Engine(imports.engine.Engine):
    """SGLang's, without a detokenizer: its scheduler answers with token ids (`skip_tokenizer_init`)."""

    @classmethod
    def _launch_detokenizer_subprocesses(cls, *args: Any, **kwargs: Any) -> tuple[list[Any], list[str]]:
        return [], []


class SglangProcesses:
    """Create it inside a running event loop; it returns once the model is loaded.

    Args:
        arguments: of SGLang's ServerArgs.

    Raises:
        RunError: a scheduler did not start; with its reason.
    """

    def __init__(self, arguments: dict[str, Any]) -> None:
        context = _Fork() if imports.ON_CPU else multiprocessing.get_context("spawn")
        self._reasons = context.SimpleQueue()
        """Why a scheduler ended."""
        _Engine.run_scheduler_process_func = staticmethod(partial(run_scheduler_process, self._reasons))
        if imports.ON_CPU:
            imports.engine.mp = context
            # Demanded for more ranks than NUMA nodes; nothing is bound without AMX, so all of them share all CPUs.
            cpus = ",".join(map(str, sorted(os.sched_getaffinity(0))))
            os.environ["SGLANG_CPU_OMP_THREADS_BIND"] = "|".join([cpus] * arguments["tp_size"])
        try:
            with _own_logging():
                self._engine = _Engine(**arguments, custom_sigquit_handler=_a_child_failed)
        except RuntimeError as error:
            raise RunError(f"SGLang did not start: {self._reason() or error}") from error
        self._manager = self._engine.tokenizer_manager
        watchdog = self._manager._subprocess_watchdog
        watchdog.stop()  # it would end this process by a signal
        self._children: list[multiprocessing.process.BaseProcess] = watchdog._processes
        self._calls = zmq.asyncio.Socket.from_socket(self._engine.send_to_rpc)
        self._calling = asyncio.Lock()
        # As its `auto_create_handle_loop`, without the handlers of signals.
        self._manager.event_loop = asyncio.get_running_loop()
        self._answers = asyncio.create_task(self._manager.handle_loop())
        self._told = False

    @property
    def dead(self) -> bool:
        # Not by `is_alive`: it takes a child for alive when somebody else has asked how it ended.
        ended = multiprocessing.connection.wait([child.sentinel for child in self._children], timeout=0)
        if not ended and not self._answers.done():
            return False
        if not self._told:
            self._told = True
            codes = [child.exitcode for child in self._children]
            log.error("SGLang died: %s (exit codes %s)", self._reason() or "a scheduler was killed", codes)
        return True

    async def generate(self, request: GenerateReqInput) -> list[dict[str, Any]]:
        """The answers to a request of several prompts. When it is cancelled, SGLang stops sampling for it."""
        answers = self._manager.generate_request(request, None)
        try:
            return list(await anext(answers))
        finally:
            await answers.aclose()

    async def call(self, method: str, **parameters: str | int | bool) -> None:
        """Of `PublishingScheduler`, on every rank.

        Raises:
            PublishError: it failed on a rank.
            RunError: a scheduler has died.
        """
        async with self._calling:
            await async_sock_send(self._calls, RpcReqInput(method=method, parameters=parameters))
            answer = await self._unless_dead(asyncio.create_task(async_sock_recv(self._calls)))
        if not answer.success:
            raise PublishError(answer.message)

    async def _unless_dead(self, answer: asyncio.Task[Any]) -> Any:
        try:
            while not answer.done():
                await asyncio.wait({answer}, timeout=DEATH_POLL_S)
                if not answer.done() and self.dead:
                    raise RunError("SGLang died; its log has the reason")
            return answer.result()
        finally:
            answer.cancel()

    def shutdown(self) -> None:
        self._answers.cancel()
        for child in self._children:
            child.kill()
        for child in self._children:
            child.join()

    def _reason(self) -> str:
        return "" if self._reasons.empty() else str(self._reasons.get())


def _a_child_failed(number: int, frame: Any) -> None:
    """SGLang's schedulers send SIGQUIT when they fail; `dead` sees it all the same."""


@contextmanager
def _own_logging() -> Iterator[None]:
    """SGLang gives the root logger another handler and level. Of its own it says every argument, hundreds of them."""
    logging.getLogger("sglang").setLevel(logging.ERROR)
    logging.getLogger(imports.engine.__name__).setLevel(logging.CRITICAL)  # that it has our handler, as an error
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
