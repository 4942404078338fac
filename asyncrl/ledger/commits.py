"""Nothing leaves replay before it is durable: messages wait here for the transaction that has what they tell.

    the loop   handles what comes ──▶ records, groups, messages gather          ──▶ the next transaction begins
    a thread                          writes the transaction before (fsync)   ──▶ its messages go

So the loop never waits for a disk. What only generators hear gathers for a while, which they do not wait for: fewer
transactions, and the thread is mostly free when a learner asks.
"""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from asyncrl.ledger.records import PromptRecord
from asyncrl.ledger.store import LedgerStore, Transaction

GATHER_S = 0.01
"""Messages that are not urgent wait at most so long for others to share their transaction."""

Send = Callable[[], object]


@dataclass(frozen=True)
class _Writing:
    """A transaction that the thread is at, and what waits for it."""

    transaction: Transaction
    messages: list[Send]
    ended: Future[None]


class Commits:
    """One transaction at a time.

    Args:
        take_changes: the records that have changed since the last call, and all counters as they stand.
    """

    def __init__(
        self, store: LedgerStore, take_changes: Callable[[], tuple[list[PromptRecord], Mapping[str, int]]]
    ) -> None:
        self._store = store
        self._take_changes = take_changes
        self._counters: Mapping[str, int] = store.counters()
        """As written, or being written."""
        self._messages: list[Send] = []
        """Of what is in no transaction yet."""
        self._due_s = math.inf
        """time.monotonic when that becomes one."""
        self._writing: _Writing | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="commits")
        self.ended, self._wake = socket.socketpair()
        """`ended` has something to read when a transaction has ended: to be polled with other sockets."""

    def send_when_durable(self, send: Send, urgent: bool = False) -> None:
        """Called in the order given, once all that has changed so far is on disk."""
        self._messages.append(send)
        now_s = time.monotonic()
        self._due_s = now_s if urgent else min(self._due_s, now_s + GATHER_S)

    def advance(self) -> float:
        """Sends what has become durable, and has the next transaction written when it is due; waits for nothing.

        Returns:
            The seconds after which to call it again, if nothing happens before.

        Raises:
            RunError: the ledger cannot be written.
        """
        if self._writing is not None and self._writing.ended.done():
            self._end()
        if self._writing is not None:
            return math.inf
        wait_s = self._due_s - time.monotonic()
        if wait_s <= 0:
            self._begin()
        return wait_s if wait_s > 0 else math.inf

    def finish(self) -> None:
        """Writes and sends all that there is.

        Raises:
            RunError: the ledger cannot be written.
        """
        self._end()
        self._begin()
        self._end()

    def close(self) -> None:
        """After the transaction that is being written; messages that wait are dropped."""
        self._thread.shutdown()
        self.ended.close()
        self._wake.close()

    def _begin(self) -> None:
        records, counters = self._take_changes()
        transaction = self._store.begin(records, counters)
        messages, self._messages, self._due_s = self._messages, [], math.inf
        if transaction.groups or records or transaction.generators is not None or counters != self._counters:
            self._counters = counters
            ended = self._thread.submit(self._store.write, transaction)
            ended.add_done_callback(lambda _: self._wake.send(b"\0"))
            self._writing = _Writing(transaction, messages, ended)
        else:
            _send_all(messages)

    def _end(self) -> None:
        """Waits for it if it has not come."""
        if self._writing is None:
            return
        writing, self._writing = self._writing, None
        writing.ended.result()
        self.ended.recv(1)
        self._store.written(writing.transaction)
        _send_all(writing.messages)


def _send_all(messages: list[Send]) -> None:
    for send in messages:
        send()
