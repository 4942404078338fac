"""The replay process: hands out prompts, keeps finished groups, gives batches to the learner.

Consumes   Hello, Serving, GroupDone, LeaseFailed from generators; BatchRequest, Published, Checkpointed, EvalRequest
           from the learner; Gone and Drain from the launcher.
Produces   LeaseGrants as credit and admission permit; one BatchReply a step; EvalReplies; Newcomers; Drained. What it
           sends is durable before it goes: a process that takes its place knows of every lease and every answer.
Waits for  messages, and its thread that writes the ledger, 100 ms at a time. It never waits for one peer: a lease has a
           deadline (then another generator gets the prompt), and the learner's own covers a batch that does not fill.
Unblocked  by generators (groups) and the learner (Published opens admission).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence

import numpy as np
import zmq

from asyncrl.config.schema import Config
from asyncrl.errors import WireError
from asyncrl.ledger.commits import Commits
from asyncrl.ledger.ledger import Ledger
from asyncrl.ledger.records import PromptRecord
from asyncrl.ledger.staleness_controller import StalenessController
from asyncrl.ledger.store import LedgerStore, StoredGroup
from asyncrl.ledger.zero_variance import rewards_differ
from asyncrl.replay.counters import ReplayCounters
from asyncrl.replay.evaluation import Evaluation
from asyncrl.replay.failed_prompts import FailedPrompts
from asyncrl.replay.generator_exits import GeneratorExits
from asyncrl.replay.learner_requests import LearnerRequests
from asyncrl.replay.lease_grant import train_grant
from asyncrl.replay.membership import Membership
from asyncrl.transport.control_link import ControlLink
from asyncrl.transport.messages.learning import (
    BatchReply,
    BatchRequest,
    Checkpointed,
    EvalRequest,
    Member,
    MembersRequest,
    Published,
)
from asyncrl.transport.messages.rollouts import Ack, GroupDone, Hello, LeaseFailed, LeaseGrant, Serving
from asyncrl.transport.messages.schema import AnyMessage
from asyncrl.transport.sockets import RefusedPeers, peer_name
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
        ledger: as it stands in the store.
        controller: moves η; None leaves it at replay.max_staleness.
    """

    def __init__(
        self,
        socket: zmq.Socket,
        config: Config,
        draw: Callable[[int], Prompt],
        evaluation: Evaluation,
        ledger: Ledger,
        store: LedgerStore,
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
        self._commits = Commits(store, self._take_changes)
        self._failed_prompts = FailedPrompts(config, draw, ledger, link)
        self._membership = Membership()
        for member, credit in store.generators():
            self._membership.restore(member, credit, ledger.leases_of(member.name))
        timeout_s = config.run.stop_timeout_s
        self._generator_exits = GeneratorExits(
            ledger,
            evaluation,
            self._membership,
            store,
            self._failed_prompts,
            link,
            timeout_s,
            self._commits.send_when_durable,
        )
        self._learner_requests = LearnerRequests(
            ledger, store, self._membership, evaluation, self._generator_exits, controller, link, self._send
        )
        self._batch_held_total_s = 0.0
        """BatchAssembly that were ready waited so long to be durable."""
        self._refills = config.algorithm.zero_variance == "refill"
        self._refused_peers = RefusedPeers(socket)
        self._counters = ReplayCounters(config.reward.max_failures, store.counters().get("num_unscored", 0))

    def run(self) -> None:
        """Serves until the launcher says stop.

        Raises:
            RunError: more prompts were quarantined than replay.max_quarantined allows, more completions were left
                unscored than reward.max_failures allows, the learner asks for a batch that is not kept, or the ledger
                cannot be written.
        """
        self._link.ready()
        self._link.phase("serving")
        try:
            self._serve()
            self._commits.finish()
        finally:
            self._commits.close()
            self._refused_peers.close()

    def _serve(self) -> None:
        next_sweep_s, wait_s = 0.0, 0.0
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._commits.ended, zmq.POLLIN)
        while not self._link.stopping.is_set():
            poller.poll(math.ceil(min(1e3 * wait_s, POLL_MS)))
            self._receive_all()
            now_s = time.monotonic()
            self._generator_exits.tend(now_s)
            if now_s >= next_sweep_s:
                self._sweep(now_s)
                next_sweep_s = now_s + SWEEP_INTERVAL_S
            self._grant(now_s)
            self._learner_requests.answer()
            wait_s = self._commits.go_on()

    def _take_changes(self) -> tuple[list[PromptRecord], dict[str, int]]:
        return self._ledger.take_changes(), {**self._ledger.counters, "num_unscored": self._counters.num_unscored}

    def _receive_all(self) -> None:
        while self._socket.poll(0):
            identity, *parts = self._socket.recv_multipart()
            try:
                sender = peer_name(identity)
                message, frames = decode(parts)
                self._handle(sender, message, frames)
            except WireError as error:
                self._counters.num_refused += 1
                log.error("refused a message: %s", error)

    def _handle(self, sender: str, message: AnyMessage, frames: list[Frame]) -> None:
        match message:
            case Hello():
                self._hello(sender, message)
            case Serving():
                self._membership.serves(sender)
            case GroupDone():
                self._group_done(sender, message, frames)
            case LeaseFailed():
                self._lease_failed(sender, message)
            case MembersRequest() | BatchRequest() | Published() | Checkpointed() | EvalRequest() if (
                sender not in self._membership
            ):
                self._learner_requests.take(sender, message)
            case _:
                raise WireError(f"{type(message).__name__} from {sender} is not for replay")

    # ── generators ──

    def _hello(self, sender: str, message: Hello) -> None:
        released = self._ledger.release(sender, message.held)
        self._evaluation.release(sender, message.held)
        if released:
            self._link.note(f"{sender} said hello again without {len(released)} of its prompts: they go to another")
        member = Member(sender, message.control_endpoint, message.tensor_parallel)
        self._membership.join(member, message.credit, message.serves, set(message.held))
        self._store.set_generators(self._membership.credits)
        self._learner_requests.announce_newcomers()

    def _group_done(self, sender: str, message: GroupDone, frames: list[Frame]) -> None:
        self._membership.answered(sender, message.lease_id)
        try:
            self._take_group(message, frames)
        except WireError as error:  # its prompt must not wait for the lease's deadline
            self._counters.num_refused += 1
            self._fail_lease(sender, message.lease_id, str(error))
        self._send(sender, Ack(message.lease_id))

    def _take_group(self, message: GroupDone, frames: list[Frame]) -> None:
        lease_id, header = message.lease_id, message.header
        check_group(header, frames)
        if self._evaluation.owns(lease_id):
            self._evaluation.complete(lease_id, header, np.frombuffer(frames[3], "<i4"))
            return
        index = self._ledger.index_of(lease_id)
        if index is None:
            return  # answered before, or by another generator
        group_size = self._config.algorithm.group_size
        if len(header.lengths) != group_size:
            raise WireError(
                f"group {header.index}: {len(header.lengths)} completions, algorithm.group_size={group_size}"
            )
        if index != header.index:
            raise WireError(f"lease {lease_id} is for prompt {index}, the group is of prompt {header.index}")
        lacks_signal = self._refills and not rewards_differ(header.rewards)
        first_version = int(np.frombuffer(frames[3], "<i4").min())
        outcome = self._ledger.complete(lease_id, first_version, not lacks_signal)
        if outcome is not None:
            self._counters.count_unscored(header)
        if outcome == "queued":
            self._store.put(index, StoredGroup(header, frames))
            if lacks_signal:
                self._failed_prompts.refill_ran_out(index)

    def _lease_failed(self, sender: str, message: LeaseFailed) -> None:
        self._membership.answered(sender, message.lease_id)
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
            self._failed_prompts.prompt_failed(index, outcome, f"{generator}: {reason}")

    def _grant(self, now_s: float) -> None:
        """One lease at a time to the generator with the most free places, evaluation first."""
        while generator := self._membership.freest():
            grant = self._evaluation.lease(generator, now_s) or self._train_grant(generator, now_s)
            if grant is None:
                return
            self._membership.granted(generator, grant.lease_id)
            self._send(generator, grant)

    def _train_grant(self, generator: str, now_s: float) -> LeaseGrant | None:
        lease = self._ledger.lease(generator, now_s)
        return None if lease is None else train_grant(lease, self._draw(lease.index), self._config)

    def _sweep(self, now_s: float) -> None:
        for lease, outcome in self._ledger.expire(now_s):
            self._failed_prompts.prompt_failed(lease.index, outcome, f"{lease.generator} did not answer in time")
        self._evaluation.expire(now_s)
        self._counters.num_refused_peers += self._refused_peers.count()
        totals_s = {
            "queue/commit_total_s": self._store.commit_total_s,
            "queue/batch_held_total_s": self._batch_held_total_s,
        }
        metrics = {**self._counters.metrics(self._ledger), **totals_s}
        self._commits.send_when_durable(lambda: self._link.metrics(metrics))

    def _send(self, receiver: str, message: AnyMessage, frames: Sequence[Frame] = ()) -> None:
        """Goes out once all that has changed is durable."""
        parts, begun_s = [receiver.encode(), *encode(message, frames)], time.perf_counter()

        def send() -> None:
            self._socket.send_multipart(parts, copy=False)
            if isinstance(message, BatchReply):
                self._batch_held_total_s += time.perf_counter() - begun_s

        self._commits.send_when_durable(send, urgent=receiver not in self._membership)
