"""Nothing leaves replay before it is durable. Each message waits here for the transaction that records what it says.

    the loop   handles messages ──▶ records, groups and replies collect       ──▶ the next transaction begins
    a thread                        writes the previous transaction (fsync)   ──▶ its replies are sent

So the loop never waits for the disk. Replies to generators wait up to GATHER_S, to share a transaction. That makes
transactions fewer, and the thread is mostly free when a learner asks.
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
"""Messages that are not urgent wait at most this long, so that others can share their transaction."""

Send = Callable[[], object]


@dataclass(frozen=True)
class _Writing:
    """The transaction that the thread is writing, and the messages that wait for it."""

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
        """As they are on disk, or are being written."""
        self._messages: list[Send] = []
        """They wait for the next transaction."""
        self._due_s = math.inf
        """time.monotonic at which the next transaction begins."""
        self._writing: _Writing | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="commits")
        self.ended, self._wake = socket.socketpair()
        """`ended` becomes readable when a transaction has ended, so that it can be polled with other sockets."""

    def send_when_durable(self, send: Send, urgent: bool = False) -> None:
        """Calls `send` once all changes so far are on disk. Messages keep their order.

        Args:
            urgent: begin the next transaction without waiting for others to share it.
        """
        self._messages.append(send)
        now_s = time.monotonic()
        self._due_s = now_s if urgent else min(self._due_s, now_s + GATHER_S)

    def advance(self) -> float:
        """Sends the messages that are durable by now, and begins the next transaction when its time has come.

        It does not block.

        Returns:
            Seconds until it must be called again if nothing else happens.

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
        """Writes everything that is left and sends all messages.

        Raises:
            RunError: the ledger cannot be written.
        """
        self._end()
        self._begin()
        self._end()

    def close(self) -> None:
        """Ends the thread after its present transaction. Drops the messages that still wait."""
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
        """Ends the transaction that is being written. Waits for it if necessary."""
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
