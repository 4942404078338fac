"""Strangers at a gloo group, on real sockets."""

from __future__ import annotations

import socket
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
import torch
from torch.distributed import HashStore, PrefixStore, ProcessGroupGloo, Store

from asyncrl.publish.groups.gloo import GlooGroup
from asyncrl.publish.groups.members import PROOF_BYTES, SECRET, TAG, require_members
from asyncrl.publish.groups.rendezvous import new_store_file, open_store
from asyncrl.transport.sockets import LOOPBACK

TIMEOUT_S = 1.0
HIGHER = "127.0.0.2"


def listening_ports() -> set[int]:
    return {one.laddr.port for one in psutil.Process().net_connections("tcp") if one.status == psutil.CONN_LISTEN}


def seat_taken(port: int, number: int) -> socket.socket:
    """Connects as gloo's peers do."""
    client = socket.create_connection((LOOPBACK, port))
    client.sendall(struct.pack("<q", number))
    return client


def heard(client: socket.socket) -> bytes:
    client.settimeout(0.2)
    try:
        return client.recv(1 << 20)
    except TimeoutError:
        return b""


def gloo(store: Store, rank: int, host: str = LOOPBACK) -> ProcessGroupGloo:
    """One of two, that proves nothing. The one with the higher address connects to the other."""
    options = ProcessGroupGloo._Options()
    options._timeout = timedelta(seconds=TIMEOUT_S)
    options._devices = [ProcessGroupGloo.create_device(hostname=host)]
    return ProcessGroupGloo(store, rank, 2, options)


def test_who_takes_a_members_place_hears_nothing_of_the_weights_and_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Gloo lets the first in who names the right number, and that is a small one."""
    file = new_store_file(tmp_path)
    before = listening_ports()
    with ThreadPoolExecutor(2) as executor:
        root = executor.submit(GlooGroup, open_store(file, TIMEOUT_S), 0, 2, TIMEOUT_S)
        while not (ports := listening_ports() - before):
            time.sleep(0.01)
        port = ports.pop()
        strangers = [seat_taken(port, number) for number in range(4)]
        time.sleep(0.2)
        member = executor.submit(gloo, open_store(file, TIMEOUT_S), 1, HIGHER)
        assert isinstance(root.exception(30), RuntimeError)
        member.result(30)  # for gloo it is in as well
    assert sum(heard(stranger) != b"" for stranger in strangers) == 1, "no stranger had the member's place"
    assert "rank 0 of a process group refused whoever came as rank 1" in caplog.text


@pytest.mark.parametrize("answer", ["a proof with another secret", "the proof it was sent"])
def test_a_rank_that_does_not_know_the_groups_secret_is_refused(answer: str) -> None:
    store = HashStore()
    store.set_timeout(timedelta(seconds=TIMEOUT_S))

    def pretend() -> None:
        group = gloo(PrefixStore("gloo", store), 1)
        proof = torch.zeros(PROOF_BYTES, dtype=torch.uint8)
        if answer == "the proof it was sent":
            group.recv([proof], 0, TAG).wait()
            group.send([proof], 0, TAG).wait()
        else:
            wrong = HashStore()
            wrong.set(SECRET, "wrong")
            with pytest.raises(RuntimeError, match=r"rank 1 .* refused whoever came as rank 0"):
                require_members(group, wrong, 1, 2)

    with ThreadPoolExecutor(1) as executor:
        pretending = executor.submit(pretend)
        group = gloo(PrefixStore("gloo", store), 0)
        with pytest.raises(RuntimeError, match=r"rank 0 .* refused whoever came as rank 1: it does not know"):
            require_members(group, PrefixStore("members", store), 0, 2)
        pretending.result()
