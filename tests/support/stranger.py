"""What a stranger can do to a live run: another user of the machine, or another machine of the network.

It runs as a process of its own; the test reads what succeeded. Standard library and pyzmq alone: who attacks has no
checkout of ours.
"""

from __future__ import annotations

import encodings.idna  # noqa: F401  loaded now: the other user may not be able to read this Python
import faulthandler
import json
import os
import socket
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError

import zmq

PATIENCE_MS = 1500
DEADLINE_S = 120.0
"""All attempts together take about five seconds. Whatever hangs is shown with its stack."""
STOP = b"ARL\x01\x81\xa4type\xa4Stop"

Address = tuple[str, int]


def unix_socket_opens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(path)
        except OSError:
            return False
    return True


def zeromq_answers(address: Address) -> bool:
    """A message without keys brings an answer, or even a handshake."""
    return _zeromq_answers(address, with_keys=False)


def zeromq_answers_to_other_keys(address: Address) -> bool:
    """A message with keys, which are not the run's."""
    return _zeromq_answers(address, with_keys=True)


def _zeromq_answers(address: Address, with_keys: bool) -> bool:
    host, port = address
    context = zmq.Context()
    client = context.socket(zmq.DEALER)
    client.setsockopt(zmq.IDENTITY, b"generator-0")
    if with_keys:
        client.curve_serverkey, _ = zmq.curve_keypair()
        client.curve_publickey, client.curve_secretkey = zmq.curve_keypair()
    monitor = client.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
    client.connect(f"tcp://{host}:{port}")
    client.setsockopt(zmq.SNDTIMEO, PATIENCE_MS)
    with suppress(zmq.Again):  # libzmq drops a peer that does not speak its language: nobody is left to send to
        client.send(STOP)
    answered = bool(monitor.poll(PATIENCE_MS)) or bool(client.poll(0))
    client.disable_monitor()
    context.destroy(linger=0)
    return answered and _greets_as_zeromq(address)


def _greets_as_zeromq(address: Address) -> bool:
    """libzmq takes the error page of an HTTP server for a peer of ZeroMQ 1, so its handshake alone proves nothing."""
    with socket.create_connection(address, PATIENCE_MS / 1e3) as client:
        try:
            return client.recv(1) == b"\xff"
        except (TimeoutError, ConnectionResetError):
            return False


def http_answers(address: Address) -> bool:
    host, port = address
    try:
        with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=PATIENCE_MS / 1e3) as reply:
            return bool(reply.status == 200)
    except (URLError, OSError, HTTPException):
        return False


def readable(folder: Path) -> list[str]:
    """Files below it that open."""
    found = []
    for where, _, names in os.walk(folder):
        for name in names:
            try:
                Path(where, name).open("rb").close()
            except OSError:
                continue
            found.append(f"{where}/{name}")
    return found


ATTEMPTS = {"zeromq": zeromq_answers, "zeromq with other keys": zeromq_answers_to_other_keys, "http": http_answers}


def become(uid: int) -> None:
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)


def main(addresses: list[Address], folder: str | None, unix_sockets: list[str], uid: int | None) -> None:
    """
    Args:
        folder: whose files are to be read.
        uid: the user to become.
    """
    if uid is not None:
        become(uid)
    succeeded: dict[str, list[str]] = {
        "files": [] if folder is None else readable(Path(folder)),
        "unix sockets": [path for path in unix_sockets if unix_socket_opens(path)],
    }
    with ThreadPoolExecutor(32) as threads:  # most attempts only wait for an answer
        for name, answers in ATTEMPTS.items():
            got_in = threads.map(answers, addresses)
            succeeded[name] = [f"{host}:{port}" for (host, port), yes in zip(addresses, got_in, strict=True) if yes]
    print(json.dumps(succeeded))  # noqa: T201


if __name__ == "__main__":
    faulthandler.dump_traceback_later(DEADLINE_S, exit=True)
    attack = json.loads(sys.argv[1])
    main([(host, port) for host, port in attack["addresses"]], attack["folder"], attack["unix_sockets"], attack["uid"])
