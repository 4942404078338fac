"""The generator's end of a publish: carries out the learner's commands on the engine, one at a time.

Consumes   JoinGroup, LeaveGroup, Stage, Switch from learner rank 0.
Produces   Done with the version served, or Failed with the reason.
Waits for  the next command; the learner's deadline covers each. For the engine to carry one out, at most twice
           publish.timeout_s: what waits for others in there gives up after half of that. Then this process ends, and
           the launcher starts another.
"""

from __future__ import annotations

import asyncio
import logging
import time

import zmq
import zmq.asyncio

from asyncrl.errors import DeadlineError, WireError
from asyncrl.generate.engines.base import Engine
from asyncrl.generate.utilization import Utilization
from asyncrl.transport.messages.publishing import Done, Failed, JoinGroup, LeaveGroup, Stage, Switch
from asyncrl.transport.messages.schema import AnyMessage
from asyncrl.transport.sockets import RefusedPeers
from asyncrl.transport.wire import decode, encode

log = logging.getLogger(__name__)

REFUSED_INTERVAL_S = 1.0


class PublishServer:
    """Answers on a bound ROUTER. `version` is what the engine serves; −1 before the first publish.

    Args:
        timeout_s: publish.timeout_s.
    """

    def __init__(self, socket: zmq.asyncio.Socket, engine: Engine, timeout_s: float) -> None:
        self._command_limit_s = 2 * timeout_s
        self._socket = socket
        self._refused = RefusedPeers(socket)
        self.num_refused = 0
        """Who came without the run's keys."""
        self._engine = engine
        self.version = -1
        self.utilization = Utilization()
        """Told of pauses here, and of leases by the worker."""
        self.served = asyncio.Event()
        """Set once a first version is served."""

    def close(self) -> None:
        self._refused.close()
        self._socket.close()

    async def count_refused(self) -> None:
        """Says in the log how many came without the run's keys."""
        while True:
            await asyncio.sleep(REFUSED_INTERVAL_S)
            num_refused = self._refused.count()
            self.num_refused += num_refused
            if num_refused:
                log.error("refused %d connections from peers without the run's keys", num_refused)

    async def run(self) -> None:
        while True:
            sender, *parts = await self._socket.recv_multipart()
            try:
                message, _ = decode(parts)
            except WireError as error:
                log.error("refused a message: %s", error)
                continue
            reply = await self._carry_out(message)
            await self._socket.send_multipart([sender, *encode(reply)])

    async def _carry_out(self, message: AnyMessage) -> Done | Failed:
        """Carries out one command. An error of the engine goes back as Failed and is logged here in full.

        A dead engine, or one that never comes back from a command, gets no answer. It ends this generator.
        """
        limit = asyncio.timeout(self._command_limit_s)
        try:
            async with limit:
                stall_s = await self._dispatch(message)
        except Exception as error:
            if limit.expired():
                raise DeadlineError(f"a {type(message).__name__}", self._command_limit_s, "the engine") from error
            if self._engine.dead:
                raise
            log.exception("%s failed", type(message).__name__)
            return Failed(f"{type(error).__name__}: {error}")
        return Done(self.version, stall_s)

    async def _dispatch(self, message: AnyMessage) -> float:
        """Returns how long generation stood still for it, in seconds."""
        match message:
            case JoinGroup():
                await self._engine.join_group(message.init_info)
            case LeaveGroup():
                await self._engine.leave_group()
            case Stage():
                await self._engine.stage()
            case Switch():
                return await self._switch(message)
            case _:
                raise WireError(f"{type(message).__name__} is no publish command")
        return 0.0

    async def _switch(self, message: Switch) -> float:
        """Completes even if the learner dies. When it fails, generation stands still until a switch succeeds."""
        await self._engine.pause(message.recompute_kv)
        self.utilization.pause()
        start_s = time.perf_counter()
        await self._engine.update(message.update_info)
        await self._engine.resume(message.version)
        stall_s = time.perf_counter() - start_s
        self.utilization.resume()
        self.version = message.version
        self.served.set()
        return stall_s
