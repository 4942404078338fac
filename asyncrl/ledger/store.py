"""The ledger's SQLite file: every prompt's life, the groups that are still needed, and the generators that are up.

    RUN/ledger.sqlite
      prompts      a row per prompt that was drawn: its state and its outcome
      groups       the sampled groups, until a checkpoint contains them: msgpack header, raw int32 / float32 arrays
      counters     the rest of `records.LedgerSnapshot`, and replay's own counts
      generators   the generators that are up
      sessions     each start of the replay process

A `Transaction` is on disk when `write` returns; no message tells of it before (`commits.py`). Groups normally come from
memory. They are read from disk only after a restart, or when a learner asks for a batch again.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec
import numpy as np

from asyncrl.errors import DataError, FinalError
from asyncrl.ledger.records import IN_HAND, LedgerSnapshot, PromptRecord
from asyncrl.transport.messages.learning import Member
from asyncrl.transport.messages.rollouts import GroupHeader
from asyncrl.transport.wire import Frame, sampled_versions

SCHEMA_VERSION = 3
SYNCHRONOUS = {"full": "FULL", "normal": "NORMAL", "off": "OFF"}
"""replay.durability → SQLite's pragma. Each of them survives a killed process; full survives a loss of power too."""

_SCHEMA = """
CREATE TABLE prompts (
  idx INTEGER PRIMARY KEY,            -- admission index: 0, 1, 2, … as drawn
  data_row INTEGER,                   -- row of the prompt data; null until it has come back
  state TEXT NOT NULL,                -- leased, waiting, queued, batched, trained, filtered, quarantined or skipped
  num_failures INTEGER NOT NULL,
  generator TEXT, lease_id INTEGER,   -- while leased
  place INTEGER,                      -- in order of completion, while queued
  step INTEGER,                       -- of its batch
  reason TEXT,                        -- why quarantined
  num_tokens INTEGER, reward_mean REAL, num_correct INTEGER, first_version INTEGER, last_version INTEGER,
  changed_s REAL NOT NULL,            -- Unix time of the last change
  data_set TEXT,                      -- of a mixture; null until it has come back
  solved REAL                         -- share of its scored completions that are correct
);
CREATE INDEX prompts_by_state ON prompts (state);
CREATE TABLE groups (
  idx INTEGER PRIMARY KEY, header BLOB NOT NULL,
  prompt_tokens BLOB NOT NULL, tokens BLOB NOT NULL, logprobs BLOB NOT NULL, versions BLOB NOT NULL,
  support_ids BLOB NOT NULL DEFAULT x'', support_sizes BLOB NOT NULL DEFAULT x''
);
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
CREATE TABLE generators (
  name TEXT PRIMARY KEY, control_endpoint TEXT NOT NULL, tensor_parallel INTEGER NOT NULL, credit INTEGER NOT NULL
);
CREATE TABLE sessions (id INTEGER PRIMARY KEY, started_s REAL NOT NULL, began_anew INTEGER NOT NULL);
"""

_FROM_VERSION = {
    1: "ALTER TABLE prompts ADD COLUMN data_set TEXT; ALTER TABLE prompts ADD COLUMN solved REAL;",
    2: "ALTER TABLE groups ADD COLUMN support_ids BLOB NOT NULL DEFAULT x'';"
    "ALTER TABLE groups ADD COLUMN support_sizes BLOB NOT NULL DEFAULT x'';",
}
"""What brings a ledger of this version to the next."""

_UPSERT = """
INSERT INTO prompts
  (idx, state, num_failures, generator, lease_id, place, step, reason, first_version, changed_s, solved)
VALUES
  (:index, :state, :num_failures, :generator, :lease_id, :place, :step, :reason, :first_version, :changed_s, :solved)
ON CONFLICT (idx) DO UPDATE SET
  state = :state, num_failures = :num_failures, generator = :generator, lease_id = :lease_id, place = :place,
  step = :step, reason = :reason, first_version = coalesce(:first_version, first_version), changed_s = :changed_s,
  solved = coalesce(:solved, solved)
"""

_OUTCOME = """
UPDATE prompts SET
  data_row = ?, data_set = nullif(?, ''), num_tokens = ?, reward_mean = ?, num_correct = ?, last_version = ?
WHERE idx = ?
"""


@dataclass(frozen=True)
class StoredGroup:
    """A group as it came over the wire; it is not decoded on the way to the learner."""

    header: GroupHeader
    frames: list[Frame]


@dataclass(frozen=True)
class Transaction:
    """Changes that are written together."""

    records: Collection[PromptRecord]
    counters: Mapping[str, int]
    groups: Mapping[int, StoredGroup]
    generators: Collection[tuple[Member, int]] | None
    """With their credit; None = unchanged."""


class LedgerStore:
    """One file, one writer. One thread calls it; only `write` may run in another thread, one call at a time.

    Args:
        path: created if it does not exist.
        durability: full | normal | off.

    Raises:
        DataError: the file is no ledger, or of another version.
        FinalError: it cannot be written.
    """

    def __init__(self, path: Path, durability: str) -> None:
        self._path = path
        self._memory: dict[int, StoredGroup] = {}
        """Groups whose batch has not been taken, by index."""
        self._new: dict[int, StoredGroup] = {}
        """Groups for the next transaction."""
        self._new_generators: Collection[tuple[Member, int]] | None = None
        self.commit_total_s = 0.0
        try:
            # Made in one thread and used in another, as it may be; never by two at once.
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._reader = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute(f"PRAGMA synchronous={SYNCHRONOUS[durability]}")
            path.chmod(0o600)
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version < SCHEMA_VERSION:
                later = [change for before, change in _FROM_VERSION.items() if before >= version]
                changes = _SCHEMA if version == 0 else " ".join(later)
                self._db.executescript(f"BEGIN; {changes} PRAGMA user_version={SCHEMA_VERSION}; COMMIT;")
            elif version != SCHEMA_VERSION:
                raise DataError(f"{path} is of version {version}; this asyncrl reads version {SCHEMA_VERSION}")
        except sqlite3.OperationalError as error:
            raise self._cannot_write(error) from error
        except sqlite3.DatabaseError as error:
            raise DataError(f"{path} is no ledger: {error}; start a new run") from error

    # ── groups ──

    def put(self, index: int, group: StoredGroup) -> None:
        """Part of the next transaction."""
        self._memory[index] = self._new[index] = group

    def get(self, index: int) -> StoredGroup:
        """A group that was put and whose prompt is not in a checkpoint yet."""
        if index in self._memory:
            return self._memory[index]
        row = self._reader.execute("SELECT * FROM groups WHERE idx = ?", (index,)).fetchone()
        return StoredGroup(msgspec.msgpack.decode(row[1], type=GroupHeader), list(row[2:]))

    # ── transactions ──

    def begin(self, records: Collection[PromptRecord], counters: Mapping[str, int]) -> Transaction:
        """A transaction with the groups put and the generators set since the previous one."""
        transaction = Transaction(records, counters, self._new, self._new_generators)
        self._new, self._new_generators = {}, None
        return transaction

    def write(self, transaction: Transaction) -> None:
        """All of it or nothing; durable when this returns.

        Raises:
            FinalError: it cannot be written, as on a full disk. What was written before is whole.
        """
        start_s = time.perf_counter()
        records, groups = transaction.records, transaction.groups
        try:
            self._db.execute("BEGIN IMMEDIATE")
            now_s = time.time()
            self._db.executemany(_UPSERT, [{**asdict(record), "changed_s": now_s} for record in records])
            self._db.executemany(
                "INSERT OR REPLACE INTO groups VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                [(index, msgspec.msgpack.encode(group.header), *group.frames) for index, group in groups.items()],
            )
            self._db.executemany(_OUTCOME, [_outcome(index, group) for index, group in groups.items()])
            done = [(record.index,) for record in records if record.state not in ("queued", "batched")]
            self._db.executemany("DELETE FROM groups WHERE idx = ?", done)
            self._db.executemany("INSERT OR REPLACE INTO counters VALUES (?, ?)", list(transaction.counters.items()))
            if transaction.generators is not None:
                self._write_generators(transaction.generators)
            self._db.execute("COMMIT")
        except sqlite3.OperationalError as error:
            raise self._cannot_write(error) from error
        self.commit_total_s += time.perf_counter() - start_s

    def written(self, transaction: Transaction) -> None:
        """Drops groups from memory that are on disk and whose batch has been taken."""
        for record in transaction.records:
            if record.state != "queued" and record.index not in self._new:  # a prompt may come back a second time
                self._memory.pop(record.index, None)

    def commit(self, records: Collection[PromptRecord], counters: Mapping[str, int]) -> None:
        """Begins, writes and ends a transaction in this thread."""
        transaction = self.begin(records, counters)
        self.write(transaction)
        self.written(transaction)

    def snapshot(self) -> LedgerSnapshot:
        """Where the ledger stood at the last commit."""
        counters = self.counters()
        places = ", ".join("?" * len(IN_HAND))
        columns = "idx, state, num_failures, generator, lease_id, place, step, reason, first_version"
        rows = self._db.execute(f"SELECT {columns} FROM prompts WHERE state IN ({places}) ORDER BY idx", IN_HAND)
        records = [PromptRecord(*row) for row in rows]
        low = counters.get("next_index", 0)
        ended = self._db.execute(
            "SELECT idx FROM prompts WHERE idx > ? AND state NOT IN ('leased', 'waiting', 'queued')", (low,)
        )
        placed = self._db.execute("SELECT idx FROM prompts WHERE idx > ? AND state IN ('batched', 'trained')", (low,))
        known = {name: counters[name] for name in LedgerSnapshot.__dataclass_fields__ if name in counters}
        return LedgerSnapshot(**known, records=records, ended=[i for (i,) in ended], placed=[i for (i,) in placed])

    def history(self) -> list[PromptRecord]:
        """Every prompt that was drawn, by index, for a `Curriculum`: state, step and share solved alone."""
        rows = self._db.execute("SELECT idx, state, step, solved FROM prompts ORDER BY idx")
        return [PromptRecord(index, state, step=step, solved=solved) for index, state, step, solved in rows]

    def counters(self) -> dict[str, int]:
        return dict(self._db.execute("SELECT name, value FROM counters"))

    # ── who is there ──

    def begin_session(self, began_anew: bool) -> int:
        """Notes a start of replay, and returns its number: 1, 2, …

        Args:
            began_anew: the whole run starts, so no earlier generator is left.
        """
        try:
            if began_anew:
                self._db.execute("DELETE FROM generators")
                self._db.execute("DELETE FROM counters WHERE name = 'served_version'")
            started = self._db.execute("INSERT INTO sessions VALUES (NULL, ?, ?)", (time.time(), began_anew))
        except sqlite3.OperationalError as error:
            raise self._cannot_write(error) from error
        assert started.lastrowid is not None
        return started.lastrowid

    def generators(self) -> list[tuple[Member, int]]:
        """The generators of the previous session, with their credit."""
        rows = self._db.execute("SELECT name, control_endpoint, tensor_parallel, credit FROM generators ORDER BY name")
        return [(Member(name, endpoint, parts), credit) for name, endpoint, parts, credit in rows]

    def set_generators(self, generators: Collection[tuple[Member, int]]) -> None:
        """Sets the generators that are up, with their credit, in the next transaction."""
        self._new_generators = generators

    def _write_generators(self, generators: Collection[tuple[Member, int]]) -> None:
        self._db.execute("DELETE FROM generators")
        rows = [(m.name, m.control_endpoint, m.tensor_parallel, credit) for m, credit in generators]
        self._db.executemany("INSERT INTO generators VALUES (?, ?, ?, ?)", rows)

    def close(self) -> None:
        self._reader.close()
        self._db.close()

    def _cannot_write(self, error: sqlite3.Error) -> FinalError:
        return FinalError(
            f"the ledger {self._path} cannot be written: {error}; everything that was acknowledged is in it. "
            "Make room, then go on with the run: --resume"
        )


def _outcome(index: int, group: StoredGroup) -> tuple[float | int | str | None, ...]:
    header, versions = group.header, sampled_versions(group.header, group.frames)
    rewards = np.asarray(header.rewards)
    valid = rewards[~np.isnan(rewards)]
    reward_mean = float(valid.mean()) if len(valid) else None
    return (
        header.row,
        header.data_set,
        sum(header.lengths),
        reward_mean,
        sum(header.correct),
        int(versions.max()),
        index,
    )
