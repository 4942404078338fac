"""A replay process that takes the place of another: what it knows, and what its peers tell it again."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from asyncrl.config.schema import Config
from asyncrl.errors import DataError, RunError
from asyncrl.ledger.records import PromptRecord
from asyncrl.ledger.store import LedgerStore, StoredGroup
from asyncrl.replay.learner_client import LearnerClient
from asyncrl.transport.messages.base import Ack
from asyncrl.transport.messages.rollouts import Hello
from asyncrl.transport.messages.supervision import Note
from asyncrl.transport.sockets import Network
from asyncrl.transport.wire import group_to_wire
from tests.support.replay import PATIENCE_S, Served, answer, generator, grants, learner, only_acks_come, small_config
from tests.support.wire import make_group, peer


@pytest.fixture
def config() -> Config:
    return small_config()


@contextmanager
def process(config: Config, path: Path, port: int = 0) -> Iterator[Served]:
    """One life of replay. Its end writes nothing: all that it has acknowledged is in the ledger before."""
    served = Served(config, Network(), path, port)
    try:
        yield served
    finally:
        served.close()


def port_of(served: Served) -> int:
    return int(served.endpoint.rpartition(":")[2])


def test_groups_batches_and_the_order_of_admission_outlive_the_process(config, tmp_path):
    path = tmp_path / "ledger.sqlite"
    with process(config, path) as served, generator(served, credit=4) as dealer, learner(served) as client:
        client.published(0, PATIENCE_S)
        first, second, third, fourth = grants(dealer, 4)
        for grant in (third, second, first):
            answer(dealer, grant)
        batch, frames = client.batch(0, PATIENCE_S)
        assert only_acks_come(dealer)
    with process(config, path) as served, learner(served) as client:
        assert client.members(PATIENCE_S).next_step == 1
        again, frames_again = client.batch(0, PATIENCE_S)
        assert (again.headers, frames_again) == (batch.headers, frames)
        with peer("generator-0", served.endpoint) as dealer:
            dealer.send(Hello("tcp://generator-0", 1, 4, serves=True, held=[fourth.lease_id]))
            assert only_acks_come(dealer)  # admission is where it was: four prompts drawn, version 0 served
            answer(dealer, fourth)
            reply, _ = client.batch(1, PATIENCE_S)
        assert [header.index for header in reply.headers] == [2, 3]


def test_a_grant_that_did_not_arrive_goes_out_again_and_what_is_held_stays_with_its_generator(config, tmp_path):
    path = tmp_path / "ledger.sqlite"
    with process(config, path) as served, generator(served, credit=2) as dealer, learner(served) as client:
        client.published(0, PATIENCE_S)
        held, lost = grants(dealer, 2)
    with process(config, path) as served:
        with peer("generator-0", served.endpoint) as dealer:
            dealer.send(Hello("tcp://generator-0", 1, 2, serves=True, held=[held.lease_id]))
            (again,) = grants(dealer, 1)
            assert again.index == lost.index
            assert again.lease_id not in (held.lease_id, lost.lease_id)
            assert only_acks_come(dealer)
        assert served.reports(Note)[0].text.startswith("generator-0 said hello again without 1 of its prompts")


def test_an_answer_that_is_sent_again_counts_once(config, tmp_path):
    path = tmp_path / "ledger.sqlite"
    with process(config, path) as served, generator(served, credit=2) as dealer, learner(served) as client:
        client.published(0, PATIENCE_S)
        first, second = grants(dealer, 2)
        answer(dealer, first)
        assert dealer.next() == Ack(first.lease_id)
    with process(config, path) as served, learner(served) as client:
        with peer("generator-0", served.endpoint) as dealer:
            dealer.send(Hello("tcp://generator-0", 1, 2, serves=True, held=[first.lease_id, second.lease_id]))
            answer(dealer, first)
            answer(dealer, second)
            reply, _ = client.batch(0, PATIENCE_S)
        assert [header.index for header in reply.headers] == [0, 1]


def test_the_generators_are_known_before_they_have_said_hello_again(config, tmp_path):
    path = tmp_path / "ledger.sqlite"
    with (
        process(config, path) as served,
        generator(served),
        generator(served, "generator-1"),
        learner(served) as client,
    ):
        client.wait_for_generators(2, PATIENCE_S)
        client.published(0, PATIENCE_S)
    with process(config, path) as served, learner(served) as client:
        assert [member.name for member in client.members(PATIENCE_S).members] == ["generator-0", "generator-1"]


def test_a_learner_that_waits_asks_the_new_process_again(config, tmp_path):
    path = tmp_path / "ledger.sqlite"
    with process(config, path) as served, generator(served) as dealer:
        client = LearnerClient("learner-0", Network(), served.endpoint, threading.Event())
        client.published(0, PATIENCE_S)
        held = grants(dealer, 2)
        replies: list = []
        asking = threading.Thread(target=lambda: replies.append(client.batch(0, PATIENCE_S)[0]))
        asking.start()
        assert dealer.hears_nothing()  # the question has come by now
        port = port_of(served)
    with process(config, path, port) as served, peer("generator-0", served.endpoint) as dealer:
        dealer.send(Hello("tcp://generator-0", 1, 2, serves=True, held=[grant.lease_id for grant in held]))
        for grant in held:
            answer(dealer, grant)
        asking.join(PATIENCE_S)
        client.close()
    assert [header.index for header in replies[0].headers] == [0, 1]


# ── the store ──


def stored(index: int) -> StoredGroup:
    header, frames = group_to_wire(make_group(index))
    return StoredGroup(header, [bytes(frame) for frame in frames])


def test_a_disk_that_is_full_is_an_error_that_says_so_and_what_was_committed_is_whole(tmp_path):
    path = tmp_path / "ledger.sqlite"
    store = LedgerStore(path, "full")
    store.put(0, stored(0))
    store.commit([PromptRecord(0, "queued", place=0, first_version=0)], {"next_lease_id": 1})
    store._db.execute(f"PRAGMA max_page_count={store._db.execute('PRAGMA page_count').fetchone()[0]}")

    def fill() -> None:
        for index in range(1, 10_000):
            store.put(index, stored(index))
            store.commit([PromptRecord(index, "queued", place=index, first_version=0)], {})

    with pytest.raises(RunError, match=r"ledger.sqlite cannot be written: database or disk is full; .*--resume"):
        fill()
    store.close()
    again = LedgerStore(path, "full")
    records = again.snapshot().records
    assert [record.index for record in records] == list(range(len(records)))
    assert records
    assert [again.get(record.index) for record in records] == [stored(record.index) for record in records]
    again.close()


def test_the_ledger_is_private_and_plain_sqlite_can_read_it(tmp_path):
    path = tmp_path / "ledger.sqlite"
    store = LedgerStore(path, "off")
    store.put(3, stored(3))
    store.commit([PromptRecord(3, "queued", place=0, first_version=0)], {})
    assert path.stat().st_mode & 0o077 == 0
    row = sqlite3.connect(path).execute(
        "SELECT data_row, state, num_tokens, reward_mean, num_correct, first_version, last_version FROM prompts"
    )
    assert row.fetchall() == [(3, "queued", 3, 0.5, 1, 0, 0)]
    store.close()


def test_groups_go_when_a_checkpoint_has_them_and_their_history_stays(tmp_path):
    store = LedgerStore(tmp_path / "ledger.sqlite", "off")
    store.put(0, stored(0))
    store.commit([PromptRecord(0, "batched", step=0)], {})
    assert store.get(0) == stored(0)
    store.commit([PromptRecord(0, "trained", step=0)], {})
    assert store._db.execute("SELECT count(*) FROM groups").fetchone() == (0,)
    assert store._db.execute("SELECT state, step FROM prompts").fetchall() == [("trained", 0)]
    store.close()


def test_a_file_that_is_no_ledger_is_refused_by_name(tmp_path):
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(DataError, match=r"ledger.sqlite is no ledger"):
        LedgerStore(path, "full")
    other = tmp_path / "newer.sqlite"
    sqlite3.connect(other).execute("PRAGMA user_version=99")
    with pytest.raises(DataError, match="version 99"):
        LedgerStore(other, "full")
