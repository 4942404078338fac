"""The launcher's end of the control links: receives every role's heartbeats, rows and notes; tells roles to stop.

Consumes   Status, StepRow, EvalRow, Note, Stacks from the roles; Drained from replay; Scale from `asyncrl scale`.
Produces   Alive for each Status, or Stop once the run is to end; DumpStacks when it is to be diagnosed; to replay, Gone
           for a generator that died and Drain for one that is to leave.
Waits for  nothing: `receive` returns after at most its poll time.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import zmq

from asyncrl.errors import WireError
from asyncrl.transport.messages.scaling import Drained, Scale
from asyncrl.transport.messages.schema import AnyMessage
from asyncrl.transport.messages.supervision import Alive, DumpStacks, EvalRow, Note, Stacks, Status, StepRow, Stop
from asyncrl.transport.sockets import Network, RefusedPeers, bind, peer_name
from asyncrl.transport.wire import decode, encode

log = logging.getLogger(__name__)

Report = StepRow | EvalRow | Note | Drained

NUM_EVENTS = 200
"""How many of the last events are kept for a diagnosis."""


@dataclass
class RoleState:
    """What the launcher knows of a role."""

    phase: str = "waiting for Ray"
    is_ready: bool = False
    last_seen_s: float | None = None
    """time.monotonic of its last message; None = never heard from."""
    last_progress_s: float | None = None
    """time.monotonic when it came up or last finished a piece of work: a group, a step, a publish, an evaluation."""
    num_done: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    stacks: str | None = None
    """The last answer to DumpStacks."""


class ControlServer:
    """One ROUTER; `roles` holds the latest state of each."""

    def __init__(self, network: Network, names: list[str]) -> None:
        context: zmq.Context = zmq.Context.instance()
        self._socket, self.endpoint = bind(context, network)
        self._refused = RefusedPeers(self._socket)
        self.roles = {name: RoleState() for name in names}
        self.events: deque[str] = deque(maxlen=NUM_EVENTS)
        """Phases, notes and rows as they came, each with its local time and its role."""
        self.requests: deque[tuple[str, Scale]] = deque()
        """Requests of `asyncrl scale`, each with its sender."""
        self._stops: dict[str, Stop] = {}

    def receive(self, poll_ms: int) -> list[tuple[str, Report]]:
        """The reports that have come, with their senders, after waiting at most `poll_ms` for a first message."""
        reports: list[tuple[str, Report]] = []
        while self._socket.poll(poll_ms):
            poll_ms = 0
            identity, *parts = self._socket.recv_multipart()
            try:
                name = peer_name(identity)
                message, _ = decode(parts)
                report = self._take(name, message)
            except WireError as error:
                log.error("refused a message: %s", error)
                continue
            if report is not None:
                reports.append((name, report))
        if num_refused := self._refused.count():
            log.error("refused %d connections from peers without the run's keys", num_refused)
        return reports

    def stop(self, names: Iterable[str], reason: str) -> None:
        """Tells these roles to end cleanly. One that has not been heard from yet is told at its first heartbeat."""
        for name in names:
            self._stops[name] = Stop(reason)
            if self.roles[name].last_seen_s is not None:
                self._send_answer(name)

    def stop_all(self, reason: str) -> None:
        """As `stop`, for every role."""
        self.stop(self.roles, reason)

    def expect_restart(self, name: str) -> None:
        """From here on the role is a new process, of which nothing is known."""
        self.roles[name] = RoleState()
        self._stops.pop(name, None)

    def forget(self, name: str) -> None:
        """The role is no part of the run any more."""
        del self.roles[name]

    def send(self, name: str, message: AnyMessage) -> None:
        """Sends a message to a role, or to an `asyncrl scale` that asked."""
        self._socket.send_multipart([name.encode(), *encode(message)])

    def event(self, name: str, text: str) -> None:
        """Keeps a line for a diagnosis."""
        self.events.append(f"{time.strftime('%H:%M:%S')} {name}: {text}")

    def ask_for_stacks(self) -> None:
        """Asks every role where its threads are; the answers are in `roles` as they come."""
        for name, state in self.roles.items():
            state.stacks = None
            if state.last_seen_s is not None:
                self.send(name, DumpStacks())

    def close(self) -> None:
        self._refused.close()
        self._socket.close()

    def _take(self, name: str, message: AnyMessage) -> Report | None:
        if isinstance(message, Scale):
            self.requests.append((name, message))
            return None
        if name not in self.roles or not isinstance(message, Status | Stacks | Report):
            raise WireError(f"{type(message).__name__} from {name} is not for the launcher")
        state = self.roles[name]
        state.last_seen_s = time.monotonic()
        match message:
            case Status():
                self._take_status(name, state, message)
                return None
            case Stacks():
                state.stacks = message.text
                return None
            case StepRow():
                self.event(name, f"step {message.step}")
                state.last_progress_s = state.last_seen_s
            case EvalRow():
                self.event(name, f"evaluation of version {message.version}")
                state.last_progress_s = state.last_seen_s
            case Note():
                self.event(name, message.text)
        return message

    def _take_status(self, name: str, state: RoleState, status: Status) -> None:
        if status.phase != state.phase:
            self.event(name, status.phase)
        if status.num_done != state.num_done or status.ready != state.is_ready:
            state.last_progress_s = state.last_seen_s
        state.phase, state.is_ready, state.metrics = status.phase, status.ready, status.metrics
        state.num_done = status.num_done
        self._send_answer(name)

    def _send_answer(self, name: str) -> None:
        self.send(name, self._stops.get(name, Alive()))
