"""The learner's side of replay: batches, versions, evaluations, and who the generators are."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

import zmq

from asyncrl.errors import DeadlineError, RunStopping, WireError
from asyncrl.transport.messages import (
    Ack,
    AnyMessage,
    BatchReply,
    BatchRequest,
    EvalReply,
    EvalRequest,
    Member,
    Members,
    MembersRequest,
    Newcomers,
    Published,
)
from asyncrl.transport.sockets import Network, connect
from asyncrl.transport.wire import FRAMES_PER_GROUP, Frame, decode, encode

Reply = TypeVar("Reply", bound=AnyMessage)

POLL_MS = 200
"""Between two looks at whether a wait should go on."""
MEMBERS_INTERVAL_S = 0.25


class ReplayClient:
    """One DEALER, one question at a time; of one thread alone.

    Args:
        stopping: set when the run is to end; a wait then raises RunStopping.
    """

    def __init__(self, name: str, network: Network, endpoint: str, stopping: threading.Event) -> None:
        context: zmq.Context = zmq.Context.instance()
        self._socket = connect(context, network, endpoint, name)
        self._stopping = stopping
        self._newcomers_wait = False
        self.while_waiting: Callable[[], None] = lambda: None
        """Called at every poll of a wait; what it raises ends the wait."""

    def members(self, timeout_s: float) -> list[Member]:
        """The generators that have said hello and have not gone since."""
        return self._ask(MembersRequest(), Members, timeout_s, "the list of generators")[0].members

    def wait_for_generators(self, num_generators: int, timeout_s: float) -> list[Member]:
        """Every generator, once all have said hello.

        Raises:
            DeadlineError: some did not come.
        """
        deadline_s = time.monotonic() + timeout_s
        while True:
            members = self.members(timeout_s)
            if len(members) >= num_generators:
                return members
            if time.monotonic() > deadline_s:
                came = ", ".join(member.name for member in members) or "none"
                raise DeadlineError(f"{num_generators} generators (came: {came})", timeout_s, "the other generators")
            if self._stopping.wait(MEMBERS_INTERVAL_S):
                raise RunStopping

    def batch(
        self, step: int, timeout_s: float, effective_sample_size: float | None = None
    ) -> tuple[BatchReply, list[Frame]]:
        """The B groups of this step, with four frames a group.

        Args:
            effective_sample_size: of the step before, for the controller of η.

        Raises:
            DeadlineError: the queue did not fill in time.
            WireError: the reply is for another step or lacks frames.
        """
        reply, frames = self._ask(
            BatchRequest(step, effective_sample_size), BatchReply, timeout_s, f"the batch of step {step}"
        )
        if reply.step != step or len(frames) != FRAMES_PER_GROUP * len(reply.headers):
            raise WireError(f"asked for the batch of step {step}, got step {reply.step} with {len(frames)} frames")
        return reply, frames

    def published(self, version: int, timeout_s: float) -> None:
        """Tells replay that every generator serves `version` whole, and waits until it knows."""
        self._ask(Published(version), Ack, timeout_s, f"replay to take note of version {version}")

    def newcomers_wait(self) -> bool:
        """Whether, since the last call, a generator has come up that waits for weights. Does not wait.

        Replay tells the client that publishes.
        """
        while self._socket.poll(0):
            self._take_note(decode(self._socket.recv_multipart())[0], "nothing")
        waited, self._newcomers_wait = self._newcomers_wait, False
        return waited

    def request_evaluation(self, version: int) -> None:
        """Starts an evaluation; its figures go to the launcher, and here through `wait_for_evaluation`."""
        self._socket.send_multipart(encode(EvalRequest(version)))

    def wait_for_evaluation(self, version: int, timeout_s: float) -> EvalReply:
        """The figures of an evaluation that was requested."""
        found, _ = self._wait(
            lambda message: isinstance(message, EvalReply) and message.version == version,
            timeout_s,
            f"the evaluation of version {version}",
        )
        assert isinstance(found, EvalReply)
        return found

    def close(self) -> None:
        self._socket.close()

    def _ask(
        self, question: AnyMessage, kind: type[Reply], timeout_s: float, waited_for: str
    ) -> tuple[Reply, list[Frame]]:
        self._socket.send_multipart(encode(question))
        reply, frames = self._wait(lambda message: isinstance(message, kind), timeout_s, waited_for)
        assert isinstance(reply, kind)
        return reply, frames

    def _wait(
        self, matches: Callable[[AnyMessage], bool], timeout_s: float, waited_for: str
    ) -> tuple[AnyMessage, list[Frame]]:
        deadline_s = time.monotonic() + timeout_s
        while True:
            if self._socket.poll(POLL_MS):
                message, frames = decode(self._socket.recv_multipart(copy=True))
                if matches(message):
                    return message, frames
                self._take_note(message, waited_for)
            if self._stopping.is_set():
                raise RunStopping
            self.while_waiting()
            if time.monotonic() > deadline_s:
                raise DeadlineError(waited_for, timeout_s, "replay (its phase says for whom it waits)")

    def _take_note(self, message: AnyMessage, waited_for: str) -> None:
        """Of what replay says unasked."""
        match message:
            case Newcomers():
                self._newcomers_wait = True
            case EvalReply():
                pass  # an evaluation that nobody waits for; its figures are with the launcher
            case _:
                raise WireError(f"waiting for {waited_for}, replay sent {type(message).__name__}")
