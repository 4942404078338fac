"""`asyncrl scale`: how another process reaches a live run, and asks it for more or fewer generators.

RUN/control.json, which only the user can read, says where the launcher listens and with which keys.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import msgspec
import zmq

from asyncrl.errors import ConfigError, DeadlineError
from asyncrl.run.directory import require_own
from asyncrl.transport.messages.publishing import Failed
from asyncrl.transport.messages.scaling import Scale, Scaled
from asyncrl.transport.sockets import Keys, Network, connect
from asyncrl.transport.wire import decode, encode

ANSWER_TIMEOUT_S = 10.0


class Address(msgspec.Struct):
    """Where a launcher listens."""

    endpoint: str
    keys: Keys | None


def write_address(run_dir: Path, endpoint: str, keys: Keys | None) -> Path:
    """Returns the file, for the launcher to remove when the run ends."""
    file = _file(run_dir)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(msgspec.json.encode(Address(endpoint, keys and replace(keys, server_secret=b""))))
    return file


def scale(run_dir: Path, num_generators: int) -> str:
    """Asks the launcher of a live run; returns its answer.

    Raises:
        ConfigError: no run of this user is live there, or it refuses.
        DeadlineError: the launcher does not answer.
    """
    file = _file(run_dir)
    if not file.is_file():
        raise ConfigError(f"{run_dir}: no run is live there (it has no {file.name})")
    require_own(run_dir)
    address = msgspec.json.decode(file.read_bytes(), type=Address)
    context: zmq.Context = zmq.Context.instance()
    socket = connect(context, Network(keys=address.keys), address.endpoint, f"scale-{os.getpid()}")
    try:
        socket.send_multipart(encode(Scale(num_generators)))
        if not socket.poll(round(1000 * ANSWER_TIMEOUT_S)):
            raise DeadlineError("an answer", ANSWER_TIMEOUT_S, f"the launcher that wrote {file}")
        answer, _ = decode(socket.recv_multipart())
    finally:
        socket.close(0)
    if isinstance(answer, Failed):
        raise ConfigError(answer.reason)
    assert isinstance(answer, Scaled)
    return answer.text


def _file(run_dir: Path) -> Path:
    return run_dir / "control.json"
