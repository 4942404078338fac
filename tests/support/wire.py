"""Real sockets and groups for the tests of replay, control and the generator worker."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import zmq

from asyncrl.errors import ConfigError
from asyncrl.transport.messages.schema import AnyMessage
from asyncrl.transport.sockets import AnySocket, Network, bind, connect
from asyncrl.transport.wire import Frame, decode, encode
from asyncrl.types import Group

PATIENCE_MS = 20_000
"""A message that must come is waited for this long; one that must not come is looked for as long as QUIET_MS."""
QUIET_MS = 300


def make_group(index: int, version: int = 0, rewards: tuple[float, ...] = (1.0, 0.0), row: int | None = None) -> Group:
    """Completions of 1, 2, 3, … tokens."""
    lengths = np.arange(1, len(rewards) + 1, dtype=np.int32)
    num_tokens = int(lengths.sum())
    return Group(
        index=index,
        row=index if row is None else row,
        prompt_token_ids=np.asarray([5, 6, index], np.int32),
        lengths=lengths,
        tokens=np.arange(num_tokens, dtype=np.int32),
        logprobs=np.full(num_tokens, -0.5, np.float32),
        versions=np.full(num_tokens, version, np.int32),
        rewards=np.asarray(rewards, np.float32),
        correct=np.asarray([reward >= 1 for reward in rewards]),
        truncated=np.zeros(len(rewards), np.bool_),
        sample_text=f"answer {index}",
        term_scores={"math": [0.5 * position for position in range(len(rewards))], "style": [index / 7] * len(rewards)},
        data_set=("sums", "products")[index % 2],
    )


def bind_again(context: zmq.Context[AnySocket], network: Network, port: int) -> tuple[AnySocket, str]:
    """As `bind`, where a server has just closed: ZeroMQ lets go of its port a little later."""
    deadline_s = time.monotonic() + PATIENCE_MS / 1000
    while True:
        try:
            return bind(context, network, port)
        except ConfigError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.01)


class Peer:
    """A scripted DEALER."""

    def __init__(self, name: str, endpoint: str, network: Network) -> None:
        context: zmq.Context = zmq.Context.instance()
        self.socket = connect(context, network, endpoint, name)

    def send(self, message: AnyMessage, frames: list[Frame] | None = None) -> None:
        self.socket.send_multipart(encode(message, frames or []))

    def send_raw(self, *parts: bytes) -> None:
        self.socket.send_multipart(parts)

    def receive(self) -> tuple[AnyMessage, list[Frame]]:
        assert self.socket.poll(PATIENCE_MS), "no message came"
        return decode(self.socket.recv_multipart())

    def next(self) -> AnyMessage:
        return self.receive()[0]

    def hears_nothing(self) -> bool:
        return not self.socket.poll(QUIET_MS)


@contextmanager
def peer(name: str, endpoint: str, network: Network | None = None) -> Iterator[Peer]:
    dealer = Peer(name, endpoint, network or Network())
    try:
        yield dealer
    finally:
        dealer.socket.close(0)
