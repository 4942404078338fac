"""ZeroMQ sockets: who binds, who connects, and with which keys.

Servers are ROUTERs and bind; clients are DEALERs, whose identity is their role's name. On one machine everything stays
on loopback. A run's sockets use CURVE, on loopback too, with keys made for this run alone; Ray, which places the roles,
carries them.
"""

from __future__ import annotations

import socket as stdlib_socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import zmq
import zmq.asyncio

from asyncrl.errors import ConfigError, DeadlineError, WireError

LOOPBACK = "127.0.0.1"
MAX_FRAME_BYTES = 1 << 30
"""A peer that sends a larger frame is disconnected before it is read. A group's tokens take megabytes."""

PROBE_TIMEOUT_S = 1.0

SEND_TIMEOUT_S = 10.0
"""Of a client. A send waits only once libzmq has dropped the server for not speaking ZeroMQ: for ever, without this."""

AnySocket = TypeVar("AnySocket", bound=zmq.Socket)
"""Blocking or asyncio, as the context makes it."""


@dataclass(frozen=True)
class Keys:
    """One CURVE key pair for the servers and one for the clients of a run (Z85 text).

    Whoever knows `server_public` may connect. It is made for one run, given to its roles alone, never sent on the wire.
    """

    server_public: bytes
    server_secret: bytes
    client_public: bytes
    client_secret: bytes

    @classmethod
    def generate(cls) -> Keys:
        return cls(*zmq.curve_keypair(), *zmq.curve_keypair())


@dataclass(frozen=True)
class Network:
    """How this role reaches the others."""

    host: str = LOOPBACK
    """The address that this role's servers bind and announce."""
    keys: Keys | None = None
    """None = loopback only, in the clear: for tests and benchmarks."""
    rendezvous_dir: Path | None = None
    """Where process groups meet: a folder that only the user can open, and that every role sees."""

    def __post_init__(self) -> None:
        assert self.keys is not None or self.host == LOOPBACK, "a socket that leaves loopback needs keys"


def bind(context: zmq.Context[AnySocket], network: Network, port: int = 0) -> tuple[AnySocket, str]:
    """A bound ROUTER and its endpoint.

    Raises:
        ConfigError: the port is in use.
    """
    socket = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.LINGER, 1000)
    socket.setsockopt(zmq.ROUTER_HANDOVER, 1)  # a role that comes back under its name replaces its dead connection
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
    if network.keys is not None:
        socket.curve_server = True
        socket.curve_publickey = network.keys.server_public
        socket.curve_secretkey = network.keys.server_secret
    try:
        socket.bind(f"tcp://{network.host}:{port or '*'}")
    except zmq.ZMQError as error:
        socket.close(0)
        raise ConfigError(f"replay.port: cannot bind {network.host}:{port}: {error}; choose another or 0") from error
    return socket, _endpoint_of(socket)


def _endpoint_of(socket: zmq.Socket) -> str:
    endpoint = socket.getsockopt(zmq.LAST_ENDPOINT)
    assert isinstance(endpoint, bytes)
    return endpoint.rstrip(b"\0").decode()


def connect(context: zmq.Context[AnySocket], network: Network, endpoint: str, identity: str) -> AnySocket:
    """A DEALER that speaks to the server at `endpoint` under the role's name."""
    socket = _dealer(context, network, identity)
    socket.connect(endpoint)
    return socket


def is_refused(endpoint: str) -> bool:
    """Whether nobody listens there any more. False for a server that is frozen or out of reach: it may only be late."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    try:
        stdlib_socket.create_connection((host, int(port)), timeout=PROBE_TIMEOUT_S).close()
    except OSError as error:
        return isinstance(error, ConnectionRefusedError)
    return False


def connect_watched(
    context: zmq.Context[AnySocket], network: Network, endpoint: str, identity: str
) -> tuple[AnySocket, Handshakes]:
    """As `connect`, with a `Handshakes` that reports reconnections."""
    socket = _dealer(context, network, identity)
    handshakes = Handshakes(socket)
    socket.connect(endpoint)
    return socket, handshakes


def _dealer(context: zmq.Context[AnySocket], network: Network, identity: str) -> AnySocket:
    kind: Any = _AsyncDealer if isinstance(context, zmq.asyncio.Context) else _Dealer
    socket = context.socket(zmq.DEALER, kind)
    socket.setsockopt(zmq.SNDTIMEO, round(1000 * SEND_TIMEOUT_S))
    socket.setsockopt(zmq.LINGER, 1000)
    socket.setsockopt(zmq.IDENTITY, identity.encode())
    socket.setsockopt(zmq.SNDHWM, 0)  # a send must not block on a dead peer; credit and deadlines bound what waits
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
    if network.keys is not None:
        socket.curve_serverkey = network.keys.server_public
        socket.curve_publickey = network.keys.client_public
        socket.curve_secretkey = network.keys.client_secret
    return socket


@contextmanager
def _telling_of_no_server(socket: zmq.Socket) -> Iterator[None]:
    try:
        yield
    except zmq.Again as error:
        waited_for = f"{_endpoint_of(socket)} to take a message, where a program that is not of this run answers now"
        raise DeadlineError(waited_for, SEND_TIMEOUT_S, "its server") from error


class _Dealer(zmq.Socket):
    """
    Raises:
        DeadlineError: by each send once another program has taken the server's port.
    """

    def send_multipart(self, *arguments: Any, **options: Any) -> Any:
        with _telling_of_no_server(self):
            return super().send_multipart(*arguments, **options)


class _AsyncDealer(zmq.asyncio.Socket):
    """As `_Dealer`."""

    async def send_multipart(self, *arguments: Any, **options: Any) -> Any:  # type: ignore[override]
        with _telling_of_no_server(self):
            return await super().send_multipart(*arguments, **options)


class Handshakes:
    """Tells when a client has reconnected: the server is a new process, or was out of reach. Messages in flight may be
    lost.

    Args:
        socket: not connected yet, so that the first handshake is not missed.
    """

    def __init__(self, socket: zmq.Socket) -> None:
        self._socket = socket
        self._monitor = socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        # An asyncio socket's monitor is an asyncio socket too; this looks at it without waiting.
        self.events: zmq.Socket = zmq.Socket.shadow(self._monitor)
        """Readable after each handshake, so that it can be polled together with the socket."""
        self._num_seen = 0

    def reconnected(self) -> bool:
        """Whether the client has reconnected since the last call. Its very first handshake does not count."""
        num_before = self._num_seen
        while self.events.poll(0):
            self.events.recv_multipart()
            self._num_seen += 1
        return self._num_seen > max(num_before, 1)

    def close(self) -> None:
        """Before the socket is closed."""
        self._socket.disable_monitor()
        self._monitor.close()


class RefusedPeers:
    """Counts whom a server turned away: without the run's keys, or not speaking ZeroMQ at all."""

    def __init__(self, server: zmq.Socket) -> None:
        self._server = server
        failures = zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
        self._monitor = server.get_monitor_socket(failures | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL)
        self._events: zmq.Socket = zmq.Socket.shadow(self._monitor)  # as in `Handshakes`

    def count(self) -> int:
        """Since the last call."""
        num_refused = 0
        while self._events.poll(0):
            self._events.recv_multipart()
            num_refused += 1
        return num_refused

    def close(self) -> None:
        """Before the server is closed."""
        self._server.disable_monitor()
        self._monitor.close()


def peer_name(identity: bytes) -> str:
    """The role's name behind a ROUTER's identity frame.

    Raises:
        WireError: it is no text, so no role of ours.
    """
    try:
        return identity.decode("ascii")
    except UnicodeDecodeError as error:
        raise WireError("message from a peer without a role name") from error
