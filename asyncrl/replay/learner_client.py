"""The learner's client of replay: batches, versions, evaluations, membership."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import zmq

from asyncrl.errors import DeadlineError, RunStopping, WireError
from asyncrl.transport.messages.base import Ack
from asyncrl.transport.messages.learning import (
    BatchReply,
    BatchRequest,
    Checkpointed,
    EvalReply,
    EvalRequest,
    Member,
    Members,
    MembersRequest,
    Newcomers,
    Published,
)
from asyncrl.transport.messages.schema import AnyMessage
from asyncrl.transport.sockets import Network, connect_watched
from asyncrl.transport.wire import FRAMES_PER_GROUP, Frame, decode, encode

POLL_MS = 200
"""How often a wait checks whether it should go on."""
MEMBERS_INTERVAL_S = 0.25


class LearnerClient:
    """One DEALER, one question at a time, for one thread.

    After replay has restarted, the client repeats its open question and gets the same answer.

    Args:
        stopping: set when the run is to end; a wait then raises RunStopping.
    """

    def __init__(self, name: str, network: Network, endpoint: str, stopping: threading.Event) -> None:
        context: zmq.Context = zmq.Context.instance()
        self._socket, self._handshakes = connect_watched(context, network, endpoint, name)
        self._stopping = stopping
        self._evaluation: EvalReply | None = None
        """The answer to the last EvalRequest."""
        self._awaited_eval: EvalRequest | None = None
        """The last EvalRequest, until it is answered."""
        self._newcomers_wait = False
        self.while_waiting: Callable[[], None] = lambda: None
        """Called at every poll of a wait; what it raises ends the wait."""

    def members(self, timeout_s: float) -> Members:
        """The generators that are up and are to stay."""
        reply, _ = self._ask(
            MembersRequest(), lambda message: isinstance(message, Members), timeout_s, "the list of generators"
        )
        assert isinstance(reply, Members)
        return reply

    def wait_for_generators(self, num_generators: int, timeout_s: float) -> list[Member]:
        """Every generator, once all have said hello.

        Raises:
            DeadlineError: some did not come.
        """
        deadline_s = time.monotonic() + timeout_s
        while True:
            members = self.members(timeout_s).members
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
        """The B groups of this step, with their frames.

        Args:
            effective_sample_size: of the step before, for the controller of η.

        Raises:
            DeadlineError: the queue did not fill in time.
            WireError: the reply lacks frames.
        """
        reply, frames = self._ask(
            BatchRequest(step, effective_sample_size),
            lambda message: isinstance(message, BatchReply) and message.step == step,
            timeout_s,
            f"the batch of step {step}",
        )
        assert isinstance(reply, BatchReply)
        if len(frames) != FRAMES_PER_GROUP * len(reply.headers):
            raise WireError(f"the batch of step {step} has {len(reply.headers)} groups and {len(frames)} frames")
        return reply, frames

    def published(self, version: int, timeout_s: float) -> None:
        """Tells replay that every generator serves `version` whole, and waits until it knows."""
        self._tell(Published(version), version, timeout_s, f"replay to take note of version {version}")

    def checkpointed(self, step: int, timeout_s: float) -> None:
        """Tells replay that the checkpoint after `step` steps is whole, and waits until it knows."""
        self._tell(Checkpointed(step), step, timeout_s, f"replay to take note of the checkpoint of step {step}")

    def newcomers_wait(self) -> bool:
        """Whether a generator has come up since the last call and needs weights. Does not block.

        Replay tells only the client that publishes.
        """
        if self._handshakes.reconnected():
            self._ask_again(None)
        while self._socket.poll(0):
            self._take_unasked(decode(self._socket.recv_multipart())[0])
        waited, self._newcomers_wait = self._newcomers_wait, False
        return waited

    def request_evaluation(self, version: int) -> None:
        """Starts an evaluation; its figures go to the launcher, and here through `wait_for_evaluation`."""
        self._evaluation, self._awaited_eval = None, EvalRequest(version)
        self._socket.send_multipart(encode(self._awaited_eval))

    def wait_for_evaluation(self, version: int, timeout_s: float) -> EvalReply:
        """The figures of the evaluation that was requested last."""
        if self._evaluation is None:
            self._wait(lambda message: self._evaluation is not None, timeout_s, f"the evaluation of version {version}")
        assert self._evaluation is not None
        return self._evaluation

    def close(self) -> None:
        self._handshakes.close()
        self._socket.close()

    def _tell(self, news: Published | Checkpointed, ref: int, timeout_s: float, waited_for: str) -> None:
        self._ask(news, lambda message: isinstance(message, Ack) and message.ref == ref, timeout_s, waited_for)

    def _ask(
        self, question: AnyMessage, matches: Callable[[AnyMessage], bool], timeout_s: float, waited_for: str
    ) -> tuple[AnyMessage, list[Frame]]:
        self._socket.send_multipart(encode(question))
        return self._wait(matches, timeout_s, waited_for, question)

    def _wait(
        self,
        matches: Callable[[AnyMessage], bool],
        timeout_s: float,
        waited_for: str,
        question: AnyMessage | None = None,
    ) -> tuple[AnyMessage, list[Frame]]:
        deadline_s = time.monotonic() + timeout_s
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._handshakes.events, zmq.POLLIN)
        while True:
            poller.poll(POLL_MS)
            if self._handshakes.reconnected():
                self._ask_again(question)
            while self._socket.poll(0):
                message, frames = decode(self._socket.recv_multipart(copy=True))
                self._take_unasked(message)
                if matches(message):
                    return message, frames
            if self._stopping.is_set():
                raise RunStopping
            self.while_waiting()
            if time.monotonic() > deadline_s:
                raise DeadlineError(waited_for, timeout_s, "replay (its phase says for whom it waits)")

    def _ask_again(self, question: AnyMessage | None) -> None:
        for open_question in (question, self._awaited_eval):
            if open_question is not None:
                self._socket.send_multipart(encode(open_question))

    def _take_unasked(self, message: AnyMessage) -> None:
        """Handles what comes beside the answer. Drops a second answer to a repeated question."""
        match message:
            case EvalReply():
                if self._awaited_eval is not None and message.version == self._awaited_eval.version:
                    self._evaluation, self._awaited_eval = message, None
            case Newcomers():
                self._newcomers_wait = True
            case Ack() | Members() | BatchReply():
                pass
            case _:
                raise WireError(f"{type(message).__name__} from replay is not for a learner")
