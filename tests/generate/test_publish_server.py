from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest
import zmq.asyncio

from asyncrl.errors import DeadlineError
from asyncrl.generate.publish_server import PublishServer
from asyncrl.transport.messages.publishing import Failed, Stage, Switch
from asyncrl.transport.sockets import Network, bind, connect
from asyncrl.transport.wire import decode, encode


class StuckEngine:
    """Its workers wait in a collective that nobody ends; the part of `Engine` that is called here."""

    dead = False

    async def stage(self) -> None:
        raise TimeoutError("an error of the engine's own")

    async def pause(self, recompute_kv: bool) -> None: ...

    async def update(self, update_info: dict[str, Any]) -> None:
        await asyncio.Event().wait()


async def answers_until_it_is_stuck() -> Failed:
    context = zmq.asyncio.Context()
    socket, endpoint = bind(context, Network())
    learner = connect(context, Network(), endpoint, "learner-0")
    running = asyncio.create_task(PublishServer(socket, StuckEngine(), timeout_s=0.1).run())
    try:
        await learner.send_multipart(encode(Stage()))
        failed, _ = decode(await learner.recv_multipart())
        assert isinstance(failed, Failed)
        await learner.send_multipart(encode(Switch(1, {"staged": True}, False)))
        with pytest.raises(DeadlineError, match="for a Switch; the engine should have come"):
            await running
        return failed
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError, DeadlineError):
            await running
        context.destroy(linger=0)


def test_a_command_that_the_engine_never_ends_ends_the_generator_and_one_that_fails_is_told_to_the_learner() -> None:
    assert asyncio.run(answers_until_it_is_stuck()).reason == "TimeoutError: an error of the engine's own"
