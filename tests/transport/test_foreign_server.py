"""A server whose port another program has taken. It speaks first and no ZeroMQ, so libzmq drops it for good."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator

import pytest
import zmq
import zmq.asyncio

from asyncrl.errors import DeadlineError, PublishError
from asyncrl.publish.generator_commands import GeneratorCommands
from asyncrl.transport import sockets
from asyncrl.transport.control_link import ControlLink
from asyncrl.transport.messages.learning import Member
from asyncrl.transport.sockets import Keys, Network, connect

NEVER_S = 600.0
PATIENCE_S = 20.0
TOLD = "where a program that is not of this run answers now"


class ForeignServer:
    """Greets each client like an HTTP server that refuses it."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._connections: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 4)
            self._connections.append(connection)

    def close(self) -> None:
        for open_socket in (self._listener, *self._connections):
            open_socket.close()


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> Iterator[ForeignServer]:
    monkeypatch.setattr(sockets, "SEND_TIMEOUT_S", 0.2)
    server = ForeignServer()
    yield server
    server.close()


def test_a_client_is_told_of_it_by_its_deadline(foreign: ForeignServer) -> None:
    client = connect(zmq.Context.instance(), Network(keys=Keys.generate()), foreign.endpoint, "learner-0")

    def send_on() -> None:
        while True:
            client.send_multipart([b"until libzmq has dropped the server"])

    with pytest.raises(DeadlineError, match=f"{foreign.endpoint} to take a message, {TOLD}"):
        send_on()
    client.close(0)


def test_a_generators_client_is_told_of_it_by_its_deadline(foreign: ForeignServer) -> None:
    async def send_on() -> None:
        context = zmq.asyncio.Context()
        client = connect(context, Network(keys=Keys.generate()), foreign.endpoint, "generator-0")
        try:
            while True:
                await client.send_multipart([b"until libzmq has dropped the server"])
                await asyncio.sleep(0)
        finally:
            context.destroy(linger=0)

    with pytest.raises(DeadlineError, match=TOLD):
        asyncio.run(asyncio.wait_for(send_on(), PATIENCE_S))


def test_a_role_whose_launcher_is_gone_and_whose_port_is_taken_stops(foreign: ForeignServer) -> None:
    link = ControlLink("generator-0", Network(keys=Keys.generate()), foreign.endpoint, NEVER_S, NEVER_S)
    assert link.stopping.wait(PATIENCE_S)
    assert TOLD in link.stop_reason
    link.close()


def test_a_generator_whose_port_is_taken_counts_as_dead_in_a_publish(foreign: ForeignServer) -> None:
    generator = Member("generator-0", foreign.endpoint, 1)
    client = GeneratorCommands("learner-0", Network(keys=Keys.generate()), [generator], PATIENCE_S)
    assert client.leave() == ["generator-0"]
    with pytest.raises(PublishError, match="generator-0 closed its connection when it was told to join"):
        client.join({})
    client.close()
