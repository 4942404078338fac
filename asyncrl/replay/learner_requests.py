"""What replay does for the learner: membership, batches, versions, checkpoints, evaluations.

A learner may repeat a question after an interrupted connection. It gets the same answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from asyncrl.ledger.ledger import Ledger
from asyncrl.ledger.staleness_controller import StalenessController
from asyncrl.ledger.store import LedgerStore
from asyncrl.replay.evaluation import Evaluation
from asyncrl.replay.generator_exits import GeneratorExits
from asyncrl.replay.membership import Membership
from asyncrl.transport.control_link import ControlLink
from asyncrl.transport.messages.base import Ack
from asyncrl.transport.messages.learning import (
    BatchReply,
    BatchRequest,
    Checkpointed,
    EvalReply,
    EvalRequest,
    Members,
    MembersRequest,
    Newcomers,
    Published,
)
from asyncrl.transport.messages.schema import AnyMessage
from asyncrl.transport.messages.supervision import EvalRow
from asyncrl.transport.wire import Frame

LearnerQuestion = MembersRequest | BatchRequest | Published | Checkpointed | EvalRequest
Send = Callable[[str, AnyMessage, Sequence[Frame]], None]


class LearnerRequests:
    """Answers at once, or as soon as a batch or an evaluation is ready.

    Args:
        controller: moves η; None leaves it at replay.max_staleness.
        send: receiver, message, frames.
    """

    def __init__(
        self,
        ledger: Ledger,
        store: LedgerStore,
        membership: Membership,
        evaluation: Evaluation,
        generator_exits: GeneratorExits,
        controller: StalenessController | None,
        link: ControlLink,
        send: Send,
    ) -> None:
        self._ledger = ledger
        self._store = store
        self._membership = membership
        self._evaluation = evaluation
        self._generator_exits = generator_exits
        self._controller = controller
        self._link = link
        self._send = send
        self._publisher: str | None = None
        """The client that reports versions: learner rank 0's publish thread."""
        self._batch_request: tuple[str, int] | None = None
        self._eval_asker: str | None = None
        if controller is not None:
            ledger.admission.eta = controller.eta

    def handle(self, sender: str, question: LearnerQuestion) -> None:
        """One message of a learner."""
        match question:
            case MembersRequest():
                self._send(sender, Members(self._membership.members, self._ledger.next_step), ())
            case BatchRequest():
                self._observe(question)
                self._batch_request = (sender, question.step)
            case Published():
                self._publisher = sender
                self._ledger.admission.published(question.version)
                self._generator_exits.published()
                self._send(sender, Ack(question.version), ())
                self.announce_newcomers()
            case Checkpointed():
                self._ledger.checkpointed(question.step)
                self._send(sender, Ack(question.step), ())
            case EvalRequest():
                self._start_evaluation(sender, question.version)

    def announce_newcomers(self) -> None:
        """Tells the publisher that newcomers wait. Before the first version it asks for the members by itself."""
        if self._publisher is not None and self._membership.has_newcomers:
            self._send(self._publisher, Newcomers(), ())

    def answer_ready(self) -> None:
        """Answers the open requests whose batch or evaluation is ready.

        Raises:
            RunError: the learner asks for a batch that is not kept, or for one after the next.
        """
        self._answer_batch_request()
        self._answer_evaluation()

    def _observe(self, request: BatchRequest) -> None:
        """Once for each new step: neither for a repeated question nor while the learner retraces its steps."""
        is_new = request.step == self._ledger.next_step and self._batch_request is None
        if is_new and self._controller is not None and request.effective_sample_size is not None:
            self._ledger.admission.eta = self._controller.observe(request.effective_sample_size)

    def _answer_batch_request(self) -> None:
        if self._batch_request is None:
            return
        sender, step = self._batch_request
        taken = self._ledger.take_batch(step)
        if taken is None:
            self._link.phase(self._waiting_for())
            return
        self._batch_request = None
        groups = [self._store.get(index) for index in taken]
        headers = [group.header for group in groups]
        frames = [frame for group in groups for frame in group.frames]
        ledger = self._ledger
        self._send(sender, BatchReply(step, headers, ledger.next_step, ledger.num_queued, ledger.admission.eta), frames)

    def _waiting_for(self) -> str:
        missing = self._ledger.missing_for_batch()
        if not self._membership.members:
            return "waiting for a generator: none is up"
        if not missing:
            return "waiting for a publish to open admission"
        holder = self._ledger.leases.holder_of(missing[0]) or "a free generator"
        return f"waiting for prompt {missing[0]} from {holder} and {len(missing) - 1} more"

    def _start_evaluation(self, sender: str, version: int) -> None:
        self._eval_asker = sender
        if self._evaluation.version == version:
            return  # asked again
        if self._evaluation.version is not None:
            self._link.note(f"dropped the evaluation of version {self._evaluation.version}: that of {version} is due")
        self._evaluation.start(version)

    def _answer_evaluation(self) -> None:
        result = self._evaluation.take_result()
        if result is None or self._eval_asker is None:
            return
        self._send(self._eval_asker, EvalReply(result.version, result.metrics, result.sample_text), ())
        self._link.send(EvalRow(result.version, {**result.metrics, "sample/eval": result.sample_text}))
        self._eval_asker = None
