"""Learner rank 0's commands to generators of which one has died."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest
import zmq

from asyncrl.errors import PublishError
from asyncrl.publish.generator_commands import GeneratorCommands
from asyncrl.transport.messages.learning import Member
from asyncrl.transport.messages.publishing import Stage
from asyncrl.transport.sockets import Network, bind, connect
from asyncrl.transport.wire import encode

NEVER_S = 60.0


@pytest.fixture
def dead() -> Iterator[Member]:
    """A generator that is gone: nobody listens on its port, and nobody else gets it."""
    with socket.socket() as its_port:
        its_port.bind(("127.0.0.1", 0))
        yield Member("generator-0", f"tcp://127.0.0.1:{its_port.getsockname()[1]}", 1)


def client_of(generator: Member) -> GeneratorCommands:
    return GeneratorCommands("learner-0", Network(), [generator], NEVER_S)


def test_a_generator_that_had_died_before_the_group_came_about_is_not_waited_for(dead: Member) -> None:
    client = client_of(dead)
    start_s = time.monotonic()
    with pytest.raises(PublishError, match="generator-0 closed its connection when it was told to join"):
        client.join({})
    assert time.monotonic() - start_s < NEVER_S / 2
    client.close()


def test_a_dead_generator_need_not_leave_a_broken_group(dead: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asyncrl.publish.generator_commands.LEAVE_TIMEOUT_S", NEVER_S)
    client = client_of(dead)
    start_s = time.monotonic()
    assert client.leave() == ["generator-0"]
    assert time.monotonic() - start_s < NEVER_S / 2
    client.close()


def test_a_client_that_is_dropped_before_its_command_was_taken_does_not_stop_the_sockets_of_the_others(
    dead: Member,
) -> None:
    context: zmq.Context = zmq.Context.instance()
    server, endpoint = bind(context, Network())
    link = connect(context, Network(), endpoint, "learner-0")
    client = client_of(dead)
    client._sockets["generator-0"].send_multipart(encode(Stage()))
    del client
    for _ in range(10):  # longer than ZeroMQ waits from one attempt to connect to the next
        time.sleep(0.05)
        link.send(b"beat")
        assert server.poll(5000), "the beat did not come"
        server.recv_multipart()
    link.close()
    server.close()
