"""The replay process: grants leases, queues finished groups, hands batches to the learner.

Consumes   Hello, Serving, CompletionDone, GroupDone, LeaseFailed from generators; BatchRequest, Published,
           Checkpointed, EvalRequest from the learner; Gone and Drain from the launcher.
Produces   LeaseGrants as credit and admission permit; one BatchReply a step; EvalReplies; Newcomers; Drained. All that
           it sends is durable first, so a replay process that is started again knows every lease and every answer.
Waits for  messages and the thread that writes the ledger, 100 ms at a time. It never waits for one peer: after a
           lease's deadline another generator gets the prompt; the learner has a deadline for its batch.
Unblocked  by generators (groups) and the learner (Published opens admission).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence

import zmq

from asyncrl.config.schema import Config
from asyncrl.errors import WireError
from asyncrl.ledger.commits import Commits
from asyncrl.ledger.ledger import Ledger
from asyncrl.ledger.records import PromptRecord
from asyncrl.ledger.staleness_controller import StalenessController
from asyncrl.ledger.store import LedgerStore
from asyncrl.replay.counters import ReplayCounters
from asyncrl.replay.evaluation import Evaluation
from asyncrl.replay.failed_prompts import FailedPrompts
from asyncrl.replay.generator_exits import GeneratorExits
from asyncrl.replay.generator_requests import GeneratorRequests
from asyncrl.replay.kept_completions import KeptCompletions
from asyncrl.replay.learner_requests import LearnerRequests
from asyncrl.replay.membership import Membership
from asyncrl.transport.control_link import ControlLink
from asyncrl.transport.messages.learning import (
    BatchReply,
    BatchRequest,
    Checkpointed,
    EvalRequest,
    MembersRequest,
    Published,
)
from asyncrl.transport.messages.rollouts import CompletionDone, GroupDone, Hello, LeaseFailed, Serving
from asyncrl.transport.messages.schema import AnyMessage
from asyncrl.transport.sockets import RefusedPeers, peer_name
from asyncrl.transport.wire import Frame, decode, encode
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
        self._ledger = ledger
        self._store = store
        self._link = link
        self._commits = Commits(store, self._take_changes)
        self._kept = KeptCompletions(config.algorithm.group_size)
        self._counters = ReplayCounters(config.reward.max_failures, store.counters().get("num_unscored", 0))
        failed_prompts = FailedPrompts(config, draw, ledger, self._kept, link)
        self._membership = Membership()
        for member, credit in store.generators():
            self._membership.restore(member, credit, ledger.leases.ids_of(member.name))
        self._generator_requests = GeneratorRequests(
            config,
            draw,
            ledger,
            store,
            self._membership,
            evaluation,
            failed_prompts,
            self._counters,
            self._kept,
            link,
            self._send,
        )
        self._generator_exits = GeneratorExits(
            ledger,
            evaluation,
            self._membership,
            store,
            failed_prompts,
            link,
            config.run.stop_timeout_s,
            self._commits.send_when_durable,
        )
        self._learner_requests = LearnerRequests(
            ledger, store, self._membership, evaluation, self._generator_exits, controller, link, self._send
        )
        self._batch_held_total_s = 0.0
        """How long ready batches have waited to be durable."""
        self._refused_peers = RefusedPeers(socket)

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
            self._generator_exits.advance(now_s)
            if now_s >= next_sweep_s:
                self._sweep(now_s)
                next_sweep_s = now_s + SWEEP_INTERVAL_S
            self._generator_requests.grant_leases(now_s)
            self._learner_requests.answer_ready()
            wait_s = self._commits.advance()

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
            case Hello() | Serving() | CompletionDone() | GroupDone() | LeaseFailed():
                self._generator_requests.handle(sender, message, frames)
                if isinstance(message, Hello):
                    self._learner_requests.announce_newcomers()
            case MembersRequest() | BatchRequest() | Published() | Checkpointed() | EvalRequest() if (
                sender not in self._membership
            ):
                self._learner_requests.handle(sender, message)
            case _:
                raise WireError(f"{type(message).__name__} from {sender} is not for replay")

    def _sweep(self, now_s: float) -> None:
        self._generator_requests.expire_leases(now_s)
        self._counters.num_refused_peers += self._refused_peers.count()
        totals_s = {
            "queue/commit_total_s": self._store.commit_total_s,
            "queue/batch_held_total_s": self._batch_held_total_s,
        }
        kept = {"queue/kept": float(len(self._kept)), "queue/handed_on": float(self._kept.num_handed_on)}
        metrics = {**self._counters.metrics(self._ledger), **kept, **totals_s}
        self._commits.send_when_durable(lambda: self._link.metrics(metrics))

    def _send(self, receiver: str, message: AnyMessage, frames: Sequence[Frame] = ()) -> None:
        """Sends the message once all changes so far are durable."""
        parts, begun_s = [receiver.encode(), *encode(message, frames)], time.perf_counter()

        def send() -> None:
            self._socket.send_multipart(parts, copy=False)
            if isinstance(message, BatchReply):
                self._batch_held_total_s += time.perf_counter() - begun_s

        self._commits.send_when_durable(send, urgent=receiver not in self._membership)
