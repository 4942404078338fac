"""What replay does for generators: it takes their groups and grants them leases.

A generator may repeat an answer after an interrupted connection. The ledger drops the second one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import msgspec

from asyncrl.config.reward_labels import reward_weights
from asyncrl.config.schema import Config
from asyncrl.errors import WireError
from asyncrl.ledger.ledger import Ledger
from asyncrl.ledger.records import LeaseRecord
from asyncrl.ledger.store import LedgerStore, StoredGroup
from asyncrl.ledger.zero_variance import rewards_differ
from asyncrl.replay.counters import ReplayCounters
from asyncrl.replay.evaluation import Evaluation
from asyncrl.replay.failed_prompts import FailedPrompts
from asyncrl.replay.kept_completions import KeptCompletions
from asyncrl.replay.membership import Membership
from asyncrl.transport.control_link import ControlLink
from asyncrl.transport.messages.base import Ack
from asyncrl.transport.messages.learning import Member
from asyncrl.transport.messages.rollouts import (
    CompletionDone,
    GroupDone,
    GroupHeader,
    Hello,
    LeaseFailed,
    LeaseGrant,
    Serving,
)
from asyncrl.transport.messages.schema import AnyMessage
from asyncrl.transport.wire import Frame, check_group, sampled_versions
from asyncrl.types import Prompt

GeneratorRequest = Hello | Serving | CompletionDone | GroupDone | LeaseFailed
Send = Callable[[str, AnyMessage, Sequence[Frame]], None]


class GeneratorRequests:
    """Handles the messages of generators, one at a time.

    Args:
        draw: admission index → training prompt.
        kept: what has ended of groups that have not.
        send: receiver, message, frames.
    """

    def __init__(
        self,
        config: Config,
        draw: Callable[[int], Prompt],
        ledger: Ledger,
        store: LedgerStore,
        membership: Membership,
        evaluation: Evaluation,
        failed_prompts: FailedPrompts,
        counters: ReplayCounters,
        kept: KeptCompletions,
        link: ControlLink,
        send: Send,
    ) -> None:
        self._config = config
        self._draw = draw
        self._ledger = ledger
        self._store = store
        self._membership = membership
        self._evaluation = evaluation
        self._failed_prompts = failed_prompts
        self._counters = counters
        self._kept = kept
        self._link = link
        self._send = send
        self._refills = config.algorithm.zero_variance == "refill"
        weights = reward_weights(config.reward.terms) if config.algorithm.advantage == "gdpo" else {}
        self._compared_terms = [label for label, weight in weights.items() if weight != 0]

    def handle(self, sender: str, request: GeneratorRequest, frames: Sequence[Frame]) -> None:
        """Handles one message.

        Raises:
            WireError: it does not fit what the generator was granted.
            RunError: it is one failure too many.
        """
        match request:
            case Hello():
                self._join(sender, request)
            case Serving():
                self._membership.serves(sender)
            case CompletionDone():
                index = self._ledger.leases.index_held(request.lease_id, sender)
                if index is not None:  # else the prompt has gone to another
                    self._kept.keep(index, request, frames)
            case GroupDone():
                self._take_group(sender, request, frames)
            case LeaseFailed():
                self._membership.answered(sender, request.lease_id)
                self._fail_lease(sender, request.lease_id, request.reason)
                self._send(sender, Ack(request.lease_id), ())

    def grant_leases(self, now_s: float) -> None:
        """Grants one lease at a time to the generator with the most credit left. Held-out prompts go first."""
        while generator := self._membership.freest():
            grant, frames = self._evaluation.lease(generator, now_s), list[Frame]()
            if grant is None:
                grant, frames = self._train_grant(generator, now_s)
            if grant is None:
                return
            self._membership.granted(generator, grant.lease_id)
            self._send(generator, grant, frames)

    def expire_leases(self, now_s: float) -> None:
        """Takes back the leases whose deadline has passed.

        Raises:
            RunError: more prompts are quarantined than replay.max_quarantined.
        """
        for lease, outcome in self._ledger.expire(now_s):
            self._failed_prompts.prompt_failed(lease.index, outcome, lease.why_late)
        self._evaluation.expire(now_s)

    def _join(self, sender: str, hello: Hello) -> None:
        released = self._ledger.release(sender, hello.held)
        self._evaluation.release(sender, hello.held)
        if released:
            self._link.note(f"{sender} said hello again without {len(released)} of its prompts: they go to another")
        member = Member(sender, hello.control_endpoint, hello.tensor_parallel)
        self._membership.join(member, hello.credit, hello.serves, set(hello.held))
        self._store.set_generators(self._membership.credits)

    def _take_group(self, sender: str, done: GroupDone, frames: Sequence[Frame]) -> None:
        self._membership.answered(sender, done.lease_id)
        try:
            self._keep_group(done, frames)
        except WireError as error:  # its prompt must not wait for the lease's deadline
            self._counters.num_refused += 1
            self._fail_lease(sender, done.lease_id, str(error))
        self._send(sender, Ack(done.lease_id), ())

    def _keep_group(self, done: GroupDone, frames: Sequence[Frame]) -> None:
        lease_id, header = done.lease_id, done.header
        check_group(header, frames)
        versions = sampled_versions(header, frames)
        if self._evaluation.owns(lease_id):
            self._evaluation.complete(lease_id, header, versions)
            return
        index = self._ledger.leases.index_of(lease_id)
        if index is None:
            return  # answered before, or by another generator
        group_size = self._config.algorithm.group_size
        if len(header.lengths) != group_size:
            raise WireError(
                f"group {header.index}: {len(header.lengths)} completions, algorithm.group_size={group_size}"
            )
        if index != header.index:
            raise WireError(f"lease {lease_id} is for prompt {index}, the group is of prompt {header.index}")
        lacks_signal = self._refills and not self._has_signal(header)
        outcome = self._ledger.complete(lease_id, int(versions.min()), not lacks_signal, _solved(header))
        if outcome is not None:
            self._kept.forget(index)
            self._counters.count_unscored(header)
        if outcome == "queued":
            self._store.put(index, StoredGroup(header, list(frames)))
            if lacks_signal:
                self._failed_prompts.refill_ran_out(index)

    def _has_signal(self, header: GroupHeader) -> bool:
        """The completions' rewards differ; for advantage=gdpo one of the terms does."""
        terms = [header.term_scores.get(label, []) for label in self._compared_terms]
        return any(rewards_differ(scores) for scores in terms or [header.rewards])

    def _fail_lease(self, generator: str, lease_id: int, reason: str) -> None:
        if self._evaluation.owns(lease_id):
            self._evaluation.fail(lease_id)
            self._link.note(f"{generator} failed on a held-out prompt: {reason}")
            return
        index = self._ledger.leases.index_of(lease_id)
        outcome = self._ledger.fail(lease_id, reason)
        if index is not None and outcome is not None:
            self._failed_prompts.prompt_failed(index, outcome, f"{generator}: {reason}")

    def _train_grant(self, generator: str, now_s: float) -> tuple[LeaseGrant | None, list[Frame]]:
        """The next prompt with what is kept of it, but for what is over the bound already, as a straggler may be."""
        lease = self._ledger.lease(generator, now_s)
        if lease is None:
            return None, []
        oldest_version = self._ledger.next_step - self._config.replay.max_staleness
        kept, frames = self._kept.hand_on(lease.index, oldest_version)
        return msgspec.structs.replace(train_grant(lease, self._draw(lease.index), self._config), kept=kept), frames


def _solved(header: GroupHeader) -> float | None:
    """Share of the scored completions that are correct; None of none."""
    scored = [correct for correct, reward in zip(header.correct, header.rewards, strict=True) if not math.isnan(reward)]
    return sum(scored) / len(scored) if scored else None


def train_grant(lease: LeaseRecord, prompt: Prompt, config: Config) -> LeaseGrant:
    """`prompt`, drawn as the lease's admission index, to be sampled as the config says."""
    return LeaseGrant(
        lease_id=lease.lease_id,
        index=lease.index,
        kind="train",
        row=prompt.row,
        token_ids=prompt.token_ids,
        text=prompt.text,
        answer=prompt.answer,
        columns=prompt.columns,
        data_set=prompt.data_set,
        num_samples=config.algorithm.group_size,
        temperature=config.generator.temperature,
        seed=_sampling_seed(config.run.seed, lease.index),
        timeout_s=config.replay.lease_timeout_s,
    )


def _sampling_seed(run_seed: int, index: int) -> int:
    """A seed per prompt draw that depends on the run's seed and the draw alone.

    Completion i of the group has this seed + i, whether its group is one request or each completion has its own. An
    episode makes one of it for each turn (`generate/episodes.py`).
    """
    return (run_seed * 1_000_003 + index * 7_919 + 12_345) % (1 << 62)
