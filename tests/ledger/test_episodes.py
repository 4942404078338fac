"""Groups of episodes in the ledger: whose versions count, and that ledgers from before there were episodes are read."""

import sqlite3
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np

from asyncrl.ledger.records import PromptRecord
from asyncrl.ledger.store import LedgerStore, StoredGroup
from asyncrl.transport.messages.rollouts import GroupDone
from asyncrl.transport.sockets import Network
from asyncrl.transport.wire import group_to_wire
from asyncrl.types import NO_VERSION, Group
from tests.support.replay import PATIENCE_S, Served, answer, generator, grants, learner, small_config
from tests.support.wire import make_group


def episodes(index: int, versions: list[int]) -> Group:
    """A completion of one token and one of three, of which the environment gave the second."""
    group = replace(make_group(index), lengths=np.array([1, 3], np.int32), spans=[[1], [1, 1, 1]])
    arrays = {name: getattr(group, name).repeat(2)[:4] for name in ("tokens", "logprobs")}
    return replace(group, **arrays, versions=np.array([*versions[:2], NO_VERSION, versions[2]], np.int32))


def test_an_environments_tokens_do_not_count_for_a_prompts_first_and_last_version(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    served = Served(small_config(), Network(), path)
    try:
        with generator(served, credit=2) as dealer, learner(served) as client:
            client.published(4, PATIENCE_S)
            first, second = grants(dealer, 2)
            header, frames = group_to_wire(replace(episodes(first.index, [3, 4, 2]), row=first.row))
            dealer.send(GroupDone(first.lease_id, header), frames)
            answer(dealer, second, version=4)
            reply, _ = client.batch(0, PATIENCE_S)
    finally:
        served.close()
    assert reply.headers[0].spans == [[1], [1, 1, 1]]
    with sqlite3.connect(path) as ledger:
        rows = ledger.execute("SELECT first_version, last_version FROM prompts WHERE state = 'batched' ORDER BY idx")
        assert rows.fetchall() == [(2, 4), (4, 4)]


def test_a_group_that_was_stored_before_there_were_episodes_is_read(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    header, frames = group_to_wire(replace(make_group(0), term_scores={}, data_set=""))
    stored = StoredGroup(header, [bytes(frame) for frame in frames])
    store = LedgerStore(path, "off")
    store.put(0, stored)
    store.commit([PromptRecord(0, "queued", place=0, first_version=0)], {})
    store.close()
    fields = ("index", "row", "num_prompt_tokens", "lengths", "rewards", "correct", "truncated", "sample_text")
    earlier = msgspec.msgpack.encode({name: getattr(header, name) for name in fields})
    with sqlite3.connect(path) as ledger:
        ledger.execute("UPDATE groups SET header = ?", (earlier,))
    again = LedgerStore(path, "off")
    assert again.get(0) == stored
    again.close()


def test_a_ledger_of_before_mixtures_and_truncated_sampling_goes_on_and_learns_the_new_columns(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    LedgerStore(path, "off").close()
    with sqlite3.connect(path) as ledger:
        for column in ("data_set", "solved"):
            ledger.execute(f"ALTER TABLE prompts DROP COLUMN {column}")
        for column in ("support_ids", "support_sizes"):
            ledger.execute(f"ALTER TABLE groups DROP COLUMN {column}")
        ledger.execute("INSERT INTO prompts (idx, state, num_failures, changed_s) VALUES (0, 'trained', 0, 0)")
        ledger.execute("PRAGMA user_version=1")
    store = LedgerStore(path, "off")
    header, frames = group_to_wire(make_group(1))
    store.put(1, StoredGroup(header, [bytes(frame) for frame in frames]))
    store.commit([PromptRecord(1, "queued", place=0, first_version=0, solved=0.5)], {})
    rows = sqlite3.connect(path).execute("SELECT idx, data_set, solved FROM prompts").fetchall()
    assert rows == [(0, None, None), (1, "products", 0.5)]


def test_a_group_that_was_stored_before_truncated_sampling_was_sampled_from_the_whole_vocabulary(
    tmp_path: Path,
) -> None:
    path = tmp_path / "ledger.sqlite"
    LedgerStore(path, "off").close()
    header, frames = group_to_wire(make_group(1))
    with sqlite3.connect(path) as ledger:
        for column in ("support_ids", "support_sizes"):
            ledger.execute(f"ALTER TABLE groups DROP COLUMN {column}")
        values = [1, msgspec.msgpack.encode(header), *(bytes(frame) for frame in frames[:4])]
        ledger.execute("INSERT INTO groups VALUES (?, ?, ?, ?, ?, ?)", values)
        ledger.execute("PRAGMA user_version=2")
    store = LedgerStore(path, "off")
    assert store.get(1) == StoredGroup(header, [bytes(frame) for frame in frames])
    store.close()
