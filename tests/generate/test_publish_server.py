from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest
import zmq.asyncio

from asyncrl.errors import DeadlineError
from asyncrl.generate import publish_server
from asyncrl.generate.publish_server import PublishServer
from asyncrl.transport.messages.publishing import Failed, Stage, Switch
from asyncrl.transport.sockets import Keys, Network, bind, connect
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


async def attempts_without_the_runs_keys() -> None:
    context = zmq.asyncio.Context()
    socket, endpoint = bind(context, Network(keys=Keys.generate()))
    server = PublishServer(socket, StuckEngine(), timeout_s=10)
    counting = asyncio.create_task(server.count_refused())
    strangers = [connect(context, Network(keys=keys), endpoint, "learner-0") for keys in (None, Keys.generate())]
    for stranger in strangers:
        await stranger.send_multipart(encode(Stage()))
    while server.num_refused < len(strangers):
        await asyncio.sleep(0.01)
    assert not await socket.poll(0)
    counting.cancel()
    server.close()
    context.destroy(linger=0)


def test_who_comes_without_the_runs_keys_is_refused_and_counted_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(publish_server, "REFUSED_INTERVAL_S", 0.05)
    asyncio.run(asyncio.wait_for(attempts_without_the_runs_keys(), timeout=20))
    assert "connections from peers without the run's keys" in caplog.text
