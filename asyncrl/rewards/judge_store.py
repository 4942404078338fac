"""What a judge has said and cost, in SQLite: one file of the run for all its generators, and across restarts."""

from __future__ import annotations

import sqlite3
from pathlib import Path

_SCHEMA = """
CREATE TABLE IF NOT EXISTS replies (question TEXT PRIMARY KEY, reply TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS spent (id INTEGER PRIMARY KEY CHECK (id = 0), num_calls INTEGER, num_tokens INTEGER);
INSERT OR IGNORE INTO spent VALUES (0, 0, 0);
"""
_LOCK_TIMEOUT_S = 30.0


class JudgeStore:
    """Replies by question, and the run's calls and tokens.

    Args:
        file: None = in memory, for as long as this object.
    """

    def __init__(self, file: Path | None) -> None:
        self._database = sqlite3.connect(file or ":memory:", timeout=_LOCK_TIMEOUT_S, isolation_level=None)
        # Without an fsync a loss of power may cost the last replies, which are asked for again.
        self._database.executescript(f"PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF; {_SCHEMA}")

    def reply(self, question: str) -> str | None:
        found = self._database.execute("SELECT reply FROM replies WHERE question = ?", (question,)).fetchone()
        return None if found is None else str(found[0])

    def keep(self, question: str, reply: str, num_tokens: int) -> None:
        self._database.execute("INSERT OR REPLACE INTO replies VALUES (?, ?)", (question, reply))
        self._database.execute("UPDATE spent SET num_tokens = num_tokens + ?", (num_tokens,))

    def spend_call(self, max_calls: int | None, max_tokens: int | None) -> str | None:
        """Counts one more call, unless the budget is spent: then says what of it."""
        counted = self._database.execute(
            "UPDATE spent SET num_calls = num_calls + 1 "
            "WHERE (? IS NULL OR num_calls < ?) AND (? IS NULL OR num_tokens < ?)",
            (max_calls, max_calls, max_tokens, max_tokens),
        )
        if counted.rowcount == 1:
            return None
        num_calls, num_tokens = self._database.execute("SELECT num_calls, num_tokens FROM spent").fetchone()
        limit = f"max_calls={max_calls}" if max_calls is not None and num_calls >= max_calls else ""
        return f"{num_calls} calls, {num_tokens} tokens ({limit or f'max_total_tokens={max_tokens}'})"

    def close(self) -> None:
        self._database.close()
