"""Nothing is told that is not on disk: replay while its ledger is being written, and killed in the middle of it."""

import multiprocessing
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import zmq

from asyncrl.ledger.records import PromptRecord
from asyncrl.ledger.store import LedgerStore, StoredGroup, Transaction
from asyncrl.transport.messages.base import Ack
from asyncrl.transport.messages.learning import BatchReply, BatchRequest, Published
from asyncrl.transport.messages.rollouts import GroupDone, Hello, LeaseGrant
from asyncrl.transport.messages.schema import AnyMessage
from asyncrl.transport.sockets import Network
from asyncrl.transport.wire import Frame, decode, group_to_wire
from tests.support.replay import PATIENCE_S, Served, answer, generator, grants, group_done, learner, small_config
from tests.support.wire import Peer, make_group, peer


class Gate:
    """Stands before every write of a ledger; open at first."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._open = threading.Event()
        self._open.set()
        self._stands_before = threading.Event()
        self._num_groups = 0
        self.written: list[Transaction] = []
        write, put = LedgerStore.write, LedgerStore.put

        def wait_and_write(store: LedgerStore, transaction: Transaction) -> None:
            if not self._open.is_set():
                self._stands_before.set()
            assert self._open.wait(PATIENCE_S)
            write(store, transaction)
            self.written.append(transaction)

        def count_and_put(store: LedgerStore, index: int, group: StoredGroup) -> None:
            put(store, index, group)
            self._num_groups += 1

        monkeypatch.setattr(LedgerStore, "write", wait_and_write)
        monkeypatch.setattr(LedgerStore, "put", count_and_put)

    def close(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    def wait_for_a_write(self) -> None:
        """Until one stands before the closed gate."""
        assert self._stands_before.wait(PATIENCE_S)

    def wait_for_groups(self, number: int) -> None:
        """Until replay has taken so many, written or not."""
        deadline_s = time.monotonic() + PATIENCE_S
        while self._num_groups < number:
            assert time.monotonic() < deadline_s, f"replay took {self._num_groups} of {number} groups"
            time.sleep(0.01)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def served(gate: Gate, path: Path) -> Iterator[Served]:
    server = Served(small_config(), Network(), path)
    try:
        yield server
    finally:
        gate.open()
        server.close()


def states(path: Path) -> dict[int, str]:
    """Of every prompt, as anybody can read it."""
    with sqlite3.connect(path) as database:
        return dict(database.execute("SELECT idx, state FROM prompts"))


def test_neither_acks_nor_grants_nor_batches_go_before_they_are_on_disk(served, gate, path):
    with generator(served, credit=2) as dealer, learner(served) as client, peer("learner-1", served.endpoint) as asker:
        client.published(0, PATIENCE_S)
        first, second = grants(dealer, 2)
        gate.close()
        answer(dealer, first)
        answer(dealer, second)
        asker.send(BatchRequest(0))
        gate.wait_for_a_write()
        gate.wait_for_groups(2)
        assert dealer.hears_nothing()
        assert not asker.socket.poll(0)
        assert states(path) == {0: "leased", 1: "leased"}
        gate.open()
        reply, _ = asker.receive()
        assert isinstance(reply, BatchReply)
        assert [header.index for header in reply.headers] == [0, 1]
        assert {grant.index for grant in grants(dealer, 2)} == {2, 3}
        assert states(path) == {0: "batched", 1: "batched", 2: "leased", 3: "leased"}


def test_what_comes_while_the_ledger_is_written_is_one_transaction_more(served, gate):
    with generator(served, credit=4) as dealer, learner(served) as client:
        client.published(0, PATIENCE_S)
        first, *others = grants(dealer, 4)
        gate.close()
        gate.written.clear()
        answer(dealer, first)
        gate.wait_for_a_write()
        for grant in others:
            answer(dealer, grant)
        gate.wait_for_groups(4)
        assert dealer.hears_nothing()
        gate.open()
        assert {dealer.next() for _ in range(4)} == {Ack(grant.lease_id) for grant in (first, *others)}
        assert [len(transaction.groups) for transaction in gate.written] == [1, 3]


def test_a_server_that_is_told_to_stop_writes_and_sends_what_it_has(served, gate, path):
    with generator(served, credit=4) as dealer, learner(served) as client:
        client.published(0, PATIENCE_S)
        first, second, *_ = grants(dealer, 4)
        gate.close()
        answer(dealer, first)
        gate.wait_for_a_write()
        answer(dealer, second)
        gate.wait_for_groups(2)
        served.link.stopping.set()
        gate.open()
        served.thread.join(PATIENCE_S)
        assert [dealer.next(), dealer.next()] == [Ack(first.lease_id), Ack(second.lease_id)]
    assert states(path) == {0: "queued", 1: "queued", 2: "leased", 3: "leased"}


def test_a_group_that_comes_anew_while_the_old_one_goes_stays(path):
    header, frames = group_to_wire(make_group(0))
    group = StoredGroup(header, [bytes(frame) for frame in frames])
    store = LedgerStore(path, "off")
    store.put(0, group)
    store.commit([PromptRecord(0, "queued", place=0, first_version=0)], {})
    requeued = store.begin([PromptRecord(0, "waiting")], {})
    store.write(requeued)
    store.put(0, group)
    store.written(requeued)
    assert store.get(0) == group
    store.close()


# ── kill -9 ──


def serve_and_die(path: Path, endpoint: Connection, num_writes: int, before_commit: bool) -> None:
    """A replay process that is killed in the midst of a write, or right after it, when its messages have not gone."""
    write, num_left = LedgerStore.write, num_writes

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def die_at_commit(statement: str) -> None:
        if statement == "COMMIT":
            die()

    def write_or_die(store: LedgerStore, transaction: Transaction) -> None:
        nonlocal num_left
        num_left -= 1
        if num_left == 0 and before_commit:
            store._db.set_trace_callback(die_at_commit)
        write(store, transaction)
        if num_left == 0:
            die()

    LedgerStore.write = write_or_die  # type: ignore[method-assign]
    served = Served(small_config(), Network(), path)
    endpoint.send(served.endpoint)
    served.thread.join()


class Witness:
    """A generator and a learner that remember what they were told through all records of replay."""

    def __init__(self) -> None:
        self.granted: dict[int, int] = {}
        self.acknowledged: set[int] = set()
        self.batches: dict[int, list[int]] = {}
        self.published = -1
        """The last version that replay has confirmed."""
        self._answers: dict[int, tuple[GroupDone, list[Frame]]] = {}

    def live_through(self, process: multiprocessing.process.BaseProcess, endpoint: str) -> None:
        """Works with replay until it is dead and everything that it had sent has been heard."""
        with peer("generator-0", endpoint) as dealer, peer("learner-0", endpoint) as client:
            dealer.send(Hello("tcp://generator-0", 1, 4, serves=True, held=sorted(self._answers)))
            for done, frames in self._answers.values():
                dealer.send(done, frames)
            client.send(Published(len(self.batches)))
            poller = zmq.Poller()
            poller.register(dealer.socket, zmq.POLLIN)
            poller.register(client.socket, zmq.POLLIN)
            was_alive, deadline_s = True, time.monotonic() + PATIENCE_S
            while was_alive:
                assert time.monotonic() < deadline_s, "replay was not killed: nothing more was written"
                was_alive = process.is_alive()
                while ready := dict(poller.poll(50)):
                    if dealer.socket in ready:
                        self._generate(dealer, dealer.next())
                    if client.socket in ready:
                        self._learn(client, decode(client.socket.recv_multipart())[0])

    def _generate(self, dealer: Peer, message: AnyMessage) -> None:
        if isinstance(message, LeaseGrant):
            self.granted[message.lease_id] = message.index
            self._answers[message.lease_id] = group_done(message)
            dealer.send(*self._answers[message.lease_id])
        else:
            assert isinstance(message, Ack)
            self.acknowledged.add(message.ref)
            self._answers.pop(message.ref, None)

    def _learn(self, client: Peer, message: AnyMessage) -> None:
        match message:
            case Ack(version):
                self.published = version
                client.send(BatchRequest(len(self.batches)))
            case BatchReply():
                indices = [header.index for header in message.headers]
                assert self.batches.setdefault(message.step, indices) == indices
                client.send(Published(len(self.batches)))

    def check(self, path: Path) -> None:
        """The ledger has all that was told."""
        with sqlite3.connect(path) as database:
            counters = dict(database.execute("SELECT name, value FROM counters"))
            prompts = {row[0]: row[1:] for row in database.execute("SELECT idx, state, lease_id FROM prompts")}
            steps = dict(database.execute("SELECT idx, step FROM prompts"))
            kept = {index for (index,) in database.execute("SELECT idx FROM groups")}
        assert all(lease_id < counters["next_lease_id"] for lease_id in self.granted)
        for lease_id, index in self.granted.items():
            state, holder = prompts[index]
            assert state in ("queued", "batched") or (state == "leased" and lease_id not in self.acknowledged)
            assert holder in (None, lease_id)
            assert (index in kept) == (state != "leased")
        for step, indices in self.batches.items():
            assert sorted(index for index, of_step in steps.items() if of_step == step) == indices
        assert self.published <= counters.get("served_version", -1)


def test_a_replay_that_is_killed_while_it_writes_has_told_nobody_of_what_is_lost(path):
    witness = Witness()
    context = multiprocessing.get_context("spawn")
    for num_writes in (1, 2, 3, 4):
        for before_commit in (True, False):
            ours, theirs = context.Pipe()
            process = context.Process(target=serve_and_die, args=(path, theirs, num_writes, before_commit))
            process.start()
            witness.live_through(process, ours.recv())
            process.join()
            assert process.exitcode == -signal.SIGKILL
            witness.check(path)
    assert witness.batches
