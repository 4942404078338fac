"""Both transports, between threads: what a group promises, and what becomes of its waits when a member is missing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from asyncrl.config.checks.publish import PublishTransport
from asyncrl.publish.groups import nccl as nccl_group
from asyncrl.publish.groups.base import Group, device_of
from asyncrl.publish.groups.rendezvous import Rendezvous, new_store_file
from tests.support import nccl

CPU = torch.device("cpu")
TIMEOUT_S = 2.0
NEVER_S = 60.0
TRANSPORTS: list[PublishTransport] = ["gloo", "nccl"]


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nccl_group, "communicator", nccl.StandInCommunicator)


def members(transport: PublishTransport, num_members: int, timeout_s: float = TIMEOUT_S) -> list[Callable[[], Group]]:
    """Each makes its own end, in a thread of its own: over gloo that waits for the others."""
    file = new_store_file(None)
    clients = [Rendezvous(file, timeout_s) for _ in range(num_members)]
    return [
        lambda rank=rank, client=client: client.group(transport, CPU, "test", rank, num_members)
        for rank, client in enumerate(clients)
    ]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_what_rank_0_sends_comes_to_all_and_each_of_their_reports_comes_back_in_order(
    transport: PublishTransport,
) -> None:
    sent = torch.arange(1000, dtype=torch.uint8)

    def receive(make: Callable[[], Group], rank: int) -> torch.Tensor:
        group, buffer = make(), torch.empty_like(sent)
        group.broadcast(buffer).wait()
        group.report(rank)
        group.report(10 * rank)
        return buffer

    root, *others = members(transport, 3, NEVER_S)
    with ThreadPoolExecutor(2) as executor:
        received = [executor.submit(receive, make, rank) for rank, make in enumerate(others, start=1)]
        group = root()
        group.broadcast(sent).wait()
        assert [group.reported(rank) for rank in (1, 2, 1, 2)] == [1, 2, 10, 20]
        assert all(torch.equal(future.result(), sent) for future in received)
    assert group.device == CPU


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_member_that_does_not_come_to_a_broadcast_or_does_not_report_is_an_error_by_the_deadline(
    transport: PublishTransport,
) -> None:
    """It has joined, then it is silent: frozen, say."""
    root, other = members(transport, 2)
    come, stop = threading.Event(), threading.Event()

    def freeze() -> None:
        group = other()
        group.broadcast(torch.empty(8)).wait()
        come.set()
        stop.wait(30)

    with ThreadPoolExecutor(1) as executor:
        executor.submit(freeze)
        group = root()
        group.broadcast(torch.zeros(8)).wait()
        assert come.wait(10)
        with pytest.raises(RuntimeError):
            group.reported(1)
        with pytest.raises(RuntimeError):
            group.broadcast(torch.zeros(64 << 20, dtype=torch.uint8)).wait()  # more than a socket takes by itself
        stop.set()


def test_the_set_up_of_nccl_which_waits_for_a_member_that_is_late_ends_at_the_deadline() -> None:
    root, _ = members("nccl", 2)
    with pytest.raises(RuntimeError, match=r"no progress for 2 s \(publish\.timeout_s\)"):
        root().broadcast(torch.zeros(8))


def test_leaving_a_group_over_nccl_frees_a_wait_in_it_at_once() -> None:
    root, _ = members("nccl", 2, NEVER_S)
    group = root()
    threading.Timer(0.2, group.abort).start()
    start_s = time.monotonic()
    with pytest.raises(RuntimeError, match="the publish group was left"):
        group.broadcast(torch.zeros(8))
    assert time.monotonic() - start_s < NEVER_S / 2


def test_without_an_accelerator_both_transports_carry_host_memory() -> None:
    assert {device_of(transport) for transport in TRANSPORTS} == {CPU}
