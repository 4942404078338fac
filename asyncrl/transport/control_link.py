"""A role's link to the launcher: heartbeats and figures go out, `Stop` comes in.

Consumes   Alive, DumpStacks, Gone, Drain and Stop from the launcher.
Produces   a Status every second, the rows and notes that the role hands it, and its stacks on demand.
Waits for  the launcher's Alive, at most `heartbeat_timeout_s`; then the launcher is gone and the role ends itself.
Unblocks   the role's loops, which look at `stopping`.

It runs in a thread of its own, so that a role still answers while it computes. When not even this thread can run (C
code that keeps the interpreter's lock), a timer writes every thread's stack to the role's log before the launcher gives
the role up.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import queue
import tempfile
import threading
import time

import zmq

from asyncrl.errors import DeadlineError, WireError
from asyncrl.transport.messages.scaling import Drain, Gone
from asyncrl.transport.messages.schema import AnyMessage
from asyncrl.transport.messages.supervision import Alive, DumpStacks, Note, Stacks, Status, Stop
from asyncrl.transport.sockets import Network, connect
from asyncrl.transport.wire import decode, encode

log = logging.getLogger(__name__)

BEAT_INTERVAL_S = 1.0
POLL_MS = 50
ORPHAN_EXIT_CODE = 70
STDERR = 2
"""The role's log."""


class ControlLink:
    """Connects one role to the launcher.

    Args:
        heartbeat_timeout_s: silence of the launcher after which this role ends itself.
        stop_timeout_s: how long a clean stop may take before the process is ended.
    """

    def __init__(
        self, name: str, network: Network, endpoint: str, heartbeat_timeout_s: float, stop_timeout_s: float
    ) -> None:
        self.name = name
        self.stopping = threading.Event()
        self.stop_reason = ""
        self.orders: queue.SimpleQueue[Gone | Drain] = queue.SimpleQueue()
        """Orders from the launcher, for the role's main loop."""
        self._network = network
        self._endpoint = endpoint
        self._heartbeat_timeout_s = heartbeat_timeout_s
        self._stop_timeout_s = stop_timeout_s
        self._phase = "starting"
        self._ready = False
        self._metrics: dict[str, float] = {}
        self._num_done = 0
        self._outbox: queue.SimpleQueue[AnyMessage] = queue.SimpleQueue()
        self._ending: threading.Timer | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="control-link", daemon=True)
        self._thread.start()

    def phase(self, text: str) -> None:
        """What the role is doing now, for people. A change is sent at once."""
        if text != self._phase:
            self._phase = text
            self._outbox.put(self._status())

    def ready(self) -> None:
        """The role has come up; from here on the start-up deadline no longer applies."""
        self._ready = True

    def metrics(self, figures: dict[str, float]) -> None:
        """The role's latest figures; they go out at once, and again with each heartbeat."""
        self._metrics = figures
        self._outbox.put(self._status())

    def progress(self) -> None:
        """A piece of work is done: a group, a publish."""
        self._num_done += 1

    def send(self, message: AnyMessage) -> None:
        """Hands a message, such as a row, to the launcher."""
        self._outbox.put(message)

    def note(self, text: str) -> None:
        """Something that people should know: for the role's log and, through the launcher, for the console."""
        log.warning(text)
        self.send(Note(text))

    def close(self) -> None:
        """The role has ended: sends what is left and ends the thread."""
        self._closing.set()
        self._thread.join(timeout=5.0)
        if self._ending is not None:
            self._ending.cancel()

    def _status(self) -> Status:
        return Status(self._phase, self._ready, dict(self._metrics), self._num_done)

    def _run(self) -> None:
        context: zmq.Context = zmq.Context.instance()
        socket = connect(context, self._network, self._endpoint, self.name)
        last_beat_s, last_alive_s = 0.0, time.monotonic()
        while not (self._closing.is_set() and self._outbox.empty()):
            now_s = time.monotonic()
            if now_s - last_beat_s >= BEAT_INTERVAL_S:
                self._outbox.put(self._status())
                last_beat_s = now_s
                if self._ready:  # a timer of the C library, which needs no interpreter; each beat winds it up again
                    faulthandler.dump_traceback_later(self._heartbeat_timeout_s / 2, file=STDERR)
            while not self._outbox.empty():
                self._send_to_launcher(socket, self._outbox.get())
            if socket.poll(POLL_MS):
                last_alive_s = now_s
                self._receive(socket.recv_multipart())
            elif now_s - last_alive_s > self._heartbeat_timeout_s:
                self._stop(f"the launcher was silent for {self._heartbeat_timeout_s:.0f} s")
        faulthandler.cancel_dump_traceback_later()
        socket.close()

    def _send_to_launcher(self, socket: zmq.Socket, message: AnyMessage) -> None:
        try:
            socket.send_multipart(encode(message))
        except DeadlineError as error:
            self._stop(str(error))

    def _receive(self, parts: list[bytes]) -> None:
        try:
            message, _ = decode(parts)
        except WireError as error:
            log.error("refused a message from the launcher: %s", error)
            return
        if isinstance(message, Stop):
            self._stop(message.reason)
        elif isinstance(message, DumpStacks):
            self._outbox.put(Stacks(_stacks()))
        elif isinstance(message, Gone | Drain):
            self.orders.put(message)
        elif not isinstance(message, Alive):
            log.warning("unexpected %s from the launcher", type(message).__name__)

    def _stop(self, reason: str) -> None:
        if self.stopping.is_set():
            return
        self.stop_reason = reason
        self.stopping.set()
        log.info("stopping: %s", reason)
        self._ending = threading.Timer(self._stop_timeout_s, _end_process, (reason, self._stop_timeout_s))
        self._ending.daemon = True
        self._ending.start()


def _stacks() -> str:
    with tempfile.TemporaryFile() as file:  # faulthandler writes to a descriptor
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read().decode(errors="replace")


def _end_process(reason: str, seconds: float) -> None:
    log.error("no clean stop within %.0f s (%s); ending the process", seconds, reason)
    os._exit(ORPHAN_EXIT_CODE)
