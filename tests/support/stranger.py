"""What another user of the machine can do to a live run. It runs as that user; the test reads what succeeded.

Standard library and pyzmq alone: who attacks has no checkout of ours.
"""

from __future__ import annotations

import encodings.idna  # noqa: F401  loaded now: the other user may not be able to read this Python
import json
import os
import socket
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError

import zmq

PATIENCE_MS = 1500
STOP = b"ARL\x01\x81\xa4type\xa4Stop"


def unix_socket_opens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(path)
        except OSError:
            return False
    return True


def zeromq_answers(port: int) -> bool:
    """A message without keys brings an answer, or even a handshake."""
    context = zmq.Context()
    client = context.socket(zmq.DEALER)
    client.setsockopt(zmq.IDENTITY, b"generator-0")
    monitor = client.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
    client.connect(f"tcp://127.0.0.1:{port}")
    client.send(STOP)
    answered = bool(monitor.poll(PATIENCE_MS)) or bool(client.poll(0))
    client.disable_monitor()
    context.destroy(linger=0)
    return answered and _greets_as_zeromq(port)


def _greets_as_zeromq(port: int) -> bool:
    """libzmq takes the error page of an HTTP server for a peer of ZeroMQ 1, so its handshake alone proves nothing."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE_MS / 1e3) as client:
        try:
            return client.recv(1) == b"\xff"
        except TimeoutError:
            return False


def http_answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE_MS / 1e3) as reply:
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


def main(run_dir: Path, uid: int, ports: list[int], unix_sockets: list[str]) -> None:
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
    succeeded = {
        "files": readable(run_dir),
        "unix sockets": [path for path in unix_sockets if unix_socket_opens(path)],
    }
    with ThreadPoolExecutor(16) as threads:  # most attempts only wait for an answer
        for name, answers in (("zeromq", zeromq_answers), ("http", http_answers)):
            succeeded[name] = [port for port, got_in in zip(ports, threads.map(answers, ports), strict=True) if got_in]
    print(json.dumps(succeeded))  # noqa: T201


if __name__ == "__main__":
    attack = json.loads(sys.argv[1])
    main(Path(attack["run_dir"]), attack["uid"], attack["ports"], attack["unix_sockets"])
