"""The replay process: hands out prompts, keeps finished groups, gives batches to the learner.

Consumes   Hello, Serving, GroupDone, LeaseFailed from generators; BatchRequest, Published, EvalRequest from the
           learner; Gone and Drain from the launcher.
Produces   LeaseGrants as credit and admission permit; one BatchReply a step; EvalReplies; Newcomers; Drained.
Waits for  messages, 100 ms at a time. It never waits for one peer: a lease has a deadline (then another generator gets
           the prompt), and the learner's own deadline covers a batch that does not fill.
Unblocked  by generators (groups) and the learner (Published opens admission).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import numpy as np
import zmq

from asyncrl.config import Config
from asyncrl.errors import RunError, WireError
from asyncrl.replay.controller import StalenessController
from asyncrl.replay.departures import Departures
from asyncrl.replay.evaluation import Evaluation
from asyncrl.replay.failures import Failures
from asyncrl.replay.grant import train_grant
from asyncrl.replay.ledger import Ledger, Taken
from asyncrl.replay.roster import Roster
from asyncrl.replay.signal import has_signal
from asyncrl.replay.store import GroupStore, StoredGroup
from asyncrl.replay.tally import Tally
from asyncrl.transport.control import ControlLink
from asyncrl.transport.messages import (
    Ack,
    AnyMessage,
    BatchReply,
    BatchRequest,
    EvalReply,
    EvalRequest,
    EvalRow,
    GroupDone,
    Hello,
    LeaseFailed,
    LeaseGrant,
    Member,
    Members,
    MembersRequest,
    Newcomers,
    Published,
    Serving,
)
from asyncrl.transport.sockets import peer_name
from asyncrl.transport.wire import Frame, check_group, decode, encode
from asyncrl.types import Prompt

log = logging.getLogger(__name__)

POLL_MS = 100
SWEEP_INTERVAL_S = 1.0


class ReplayServer:
    """One ROUTER socket, one ledger, one store.

    Args:
        socket: bound ROUTER.
        draw: admission index → training prompt.
        evaluation: the held-out prompts.
        controller: moves η; None leaves it at replay.max_staleness.
    """

    def __init__(
        self,
        socket: zmq.Socket,
        config: Config,
        draw: Callable[[int], Prompt],
        evaluation: Evaluation,
        ledger: Ledger,
        store: GroupStore,
        link: ControlLink,
        controller: StalenessController | None = None,
    ) -> None:
        self._socket = socket
        self._config = config
        self._draw = draw
        self._evaluation = evaluation
        self._ledger = ledger
        self._store = store
        self._link = link
        self._controller = controller
        if controller is not None:
            ledger.eta = controller.eta
        self._failures = Failures(config, draw, ledger, link)
        self._roster = Roster()
        timeout_s = config.run.stop_timeout_s
        self._departures = Departures(ledger, evaluation, self._roster, self._failures, link, timeout_s)
        self._publisher: str | None = None
        """Who tells of versions: learner rank 0's thread that publishes."""
        self._batch_request: tuple[str, int] | None = None
        self._eval_asker: str | None = None
        self._refills = config.algorithm.zero_variance == "refill"
        self._tally = Tally(config.reward.max_failures)

    def run(self) -> None:
        """Serves until the launcher says stop.

        Raises:
            RunError: more prompts were quarantined than replay.max_quarantined allows, more completions were left
                unscored than reward.max_failures allows, or the learner is at another step than the ledger.
        """
        next_sweep_s = 0.0
        self._link.ready()
        self._link.phase("serving")
        while not self._link.stopping.is_set():
            if self._socket.poll(POLL_MS):
                self._receive_all()
            now_s = time.monotonic()
            self._departures.tend(now_s)
            if now_s >= next_sweep_s:
                self._sweep(now_s)
                next_sweep_s = now_s + SWEEP_INTERVAL_S
            self._grant(now_s)
            self._answer_batch_request()
            self._answer_evaluation()

    def _receive_all(self) -> None:
        while self._socket.poll(0):
            identity, *parts = self._socket.recv_multipart()
            try:
                sender = peer_name(identity)
                message, frames = decode(parts)
                self._handle(sender, message, frames)
            except WireError as error:
                self._tally.num_refused += 1
                log.error("refused a message: %s", error)

    def _handle(self, sender: str, message: AnyMessage, frames: list[Frame]) -> None:
        match message:
            case Hello():
                self._hello(sender, message)
            case Serving():
                self._roster.serves(sender)
            case GroupDone():
                self._group_done(sender, message, frames)
            case LeaseFailed():
                self._lease_failed(sender, message)
            case MembersRequest() | BatchRequest() | Published() | EvalRequest() if sender not in self._roster:
                self._handle_learner(sender, message)
            case _:
                raise WireError(f"{type(message).__name__} from {sender} is not for replay")

    # ── generators ──

    def _hello(self, sender: str, message: Hello) -> None:
        released = self._ledger.release(sender)
        self._evaluation.release(sender)
        if released:
            self._link.note(f"{sender} said hello again: {len(released)} of its prompts go to another")
        self._roster.join(Member(sender, message.control_endpoint, message.tensor_parallel), message.credit)
        self._announce_newcomers()

    def _announce_newcomers(self) -> None:
        """Tells who publishes that they wait; before the first version it asks who is there by itself."""
        if self._publisher is not None and self._roster.has_newcomers:
            self._send(self._publisher, Newcomers())

    def _group_done(self, sender: str, message: GroupDone, frames: list[Frame]) -> None:
        self._roster.answered(sender, message.lease_id)
        try:
            self._take_group(message, frames)
        except WireError as error:  # its prompt must not wait for the lease's deadline
            self._tally.num_refused += 1
            self._fail_lease(sender, message.lease_id, str(error))
        self._send(sender, Ack(message.lease_id))

    def _take_group(self, message: GroupDone, frames: list[Frame]) -> None:
        lease_id, header = message.lease_id, message.header
        check_group(header, frames)
        if self._evaluation.owns(lease_id):
            self._evaluation.complete(lease_id, header, np.frombuffer(frames[3], "<i4"))
            return
        index = self._ledger.index_of(lease_id)
        group_size = self._config.algorithm.group_size
        if len(header.lengths) != group_size:
            raise WireError(
                f"group {header.index}: {len(header.lengths)} completions, algorithm.group_size={group_size}"
            )
        if index != header.index:
            raise WireError(f"lease {lease_id} is for prompt {index}, the group is of prompt {header.index}")
        lacks_signal = self._refills and not has_signal(header.rewards)
        outcome = self._ledger.complete(lease_id, not lacks_signal)
        if outcome is not None:
            self._tally.count_unscored(header)
        if outcome == "queued":
            self._store.put(index, StoredGroup(header, frames))
            if lacks_signal:
                self._failures.refill_ran_out(index)

    def _lease_failed(self, sender: str, message: LeaseFailed) -> None:
        self._roster.answered(sender, message.lease_id)
        self._fail_lease(sender, message.lease_id, message.reason)
        self._send(sender, Ack(message.lease_id))

    def _fail_lease(self, generator: str, lease_id: int, reason: str) -> None:
        if self._evaluation.owns(lease_id):
            self._evaluation.fail(lease_id)
            self._link.note(f"{generator} failed on a held-out prompt: {reason}")
            return
        index = self._ledger.index_of(lease_id)
        outcome = self._ledger.fail(lease_id, reason)
        if index is not None and outcome is not None:
            self._failures.prompt_failed(index, outcome, f"{generator}: {reason}")

    def _grant(self, now_s: float) -> None:
        """One lease at a time to the generator with the most free places, evaluation first."""
        while generator := self._roster.freest():
            grant = self._evaluation.lease(generator, now_s) or self._train_grant(generator, now_s)
            if grant is None:
                return
            self._roster.granted(generator, grant.lease_id)
            self._send(generator, grant)

    def _train_grant(self, generator: str, now_s: float) -> LeaseGrant | None:
        lease = self._ledger.lease(generator, now_s)
        return None if lease is None else train_grant(lease, self._draw(lease.index), self._config)

    def _sweep(self, now_s: float) -> None:
        for lease, outcome in self._ledger.expire(now_s):
            self._failures.prompt_failed(lease.index, outcome, f"{lease.generator} did not answer in time")
        self._evaluation.expire(now_s)
        self._link.metrics(self._tally.metrics(self._ledger))

    # ── learner ──

    def _handle_learner(self, sender: str, message: MembersRequest | BatchRequest | Published | EvalRequest) -> None:
        match message:
            case MembersRequest():
                self._send(sender, Members(self._roster.members))
            case BatchRequest():
                if message.step != self._ledger.next_step:
                    raise RunError(f"{sender} asked for step {message.step}, the ledger is at {self._ledger.next_step}")
                if self._controller is not None and message.effective_sample_size is not None:
                    self._ledger.eta = self._controller.observe(message.effective_sample_size)
                self._batch_request = (sender, message.step)
            case Published():
                self._publisher = sender
                self._ledger.published(message.version)
                self._departures.published()
                self._send(sender, Ack(message.version))
                self._announce_newcomers()
            case EvalRequest():
                self._start_evaluation(sender, message.version)

    def _start_evaluation(self, sender: str, version: int) -> None:
        if self._evaluation.version is not None:
            self._link.note(f"dropped the evaluation of version {self._evaluation.version}: that of {version} is due")
        self._eval_asker = sender
        self._evaluation.start(version)

    def _answer_batch_request(self) -> None:
        if self._batch_request is None:
            return
        taken = self._ledger.take_batch()
        if taken is None:
            self._link.phase(self._waiting_for())
            return
        sender, step = self._batch_request
        self._batch_request = None
        self._send_batch(sender, step, taken)

    def _send_batch(self, sender: str, step: int, taken: Taken) -> None:
        groups = [self._store.get(index) for index in taken.indices]
        headers = [group.header for group in groups]
        frames = [frame for group in groups for frame in group.frames]
        ledger = self._ledger
        reply = BatchReply(step, headers, taken.next_index, taken.ended, ledger.num_queued, ledger.eta)
        self._send(sender, reply, frames)
        for index in taken.indices:
            self._store.remove(index)

    def _waiting_for(self) -> str:
        missing = self._ledger.missing_for_batch()
        if not self._roster.members:
            return "waiting for a generator: none is up"
        if not missing:
            return "waiting for a publish to open admission"
        holder = self._ledger.holder_of(missing[0]) or "a free generator"
        return f"waiting for prompt {missing[0]} from {holder} and {len(missing) - 1} more"

    def _answer_evaluation(self) -> None:
        result = self._evaluation.take_result()
        if result is None or self._eval_asker is None:
            return
        self._send(self._eval_asker, EvalReply(result.version, result.metrics, result.sample_text))
        self._link.send(EvalRow(result.version, {**result.metrics, "sample/eval": result.sample_text}))
        self._eval_asker = None

    def _send(self, receiver: str, message: AnyMessage, frames: Sequence[Frame] = ()) -> None:
        self._socket.send_multipart([receiver.encode(), *encode(message, frames)], copy=False)
