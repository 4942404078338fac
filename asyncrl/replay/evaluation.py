"""One evaluation on the generators: which held-out prompts are leased, which came back, and the resulting figures.

Evaluation leases have negative ids, so they never collide with the ledger's. Training goes on meanwhile:
`eval/num_versions` says how many versions the tokens of one evaluation came from (1 = one policy alone).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from asyncrl.config.schema import Config
from asyncrl.transport.messages.rollouts import GroupHeader, LeaseGrant
from asyncrl.types import Prompt, first_of_each


@dataclass(frozen=True)
class _Lease:
    position: int
    generator: str
    deadline_s: float


@dataclass(frozen=True)
class EvaluationResult:
    """What an evaluation found."""

    version: int
    metrics: dict[str, float]
    sample_text: str


class Evaluation:
    """At most one evaluation at a time; a newer request takes the place of one that has not ended.

    Args:
        first_lease_id: below 0, and below those of earlier replay processes, whose leases may still be answered.
    """

    def __init__(self, prompts: Sequence[Prompt], config: Config, first_lease_id: int = -1) -> None:
        self._prompts = first_of_each(prompts, config.run.eval_prompts)
        self._config = config
        self.version: int | None = None
        """The version that is being evaluated; None = no evaluation is in progress."""
        self._waiting: deque[int] = deque()
        self._out: dict[int, _Lease] = {}
        self._attempts: dict[int, int] = {}
        self._done: dict[int, GroupHeader] = {}
        self._versions: set[int] = set()
        self._num_failed = 0
        self._next_lease_id = first_lease_id

    def start(self, version: int) -> None:
        """Puts every held-out prompt in line."""
        self.version = version
        self._waiting = deque(range(len(self._prompts)))
        self._out, self._attempts, self._done, self._num_failed = {}, {}, {}, 0
        self._versions = set()

    def lease(self, generator: str, now_s: float) -> LeaseGrant | None:
        """The next held-out prompt, or None."""
        if not self._waiting:
            return None
        position = self._waiting.popleft()
        prompt = self._prompts[position]
        lease_id = self._next_lease_id
        self._next_lease_id -= 1
        timeout_s = self._config.replay.lease_timeout_s
        self._out[lease_id] = _Lease(position, generator, now_s + timeout_s)
        return LeaseGrant(
            lease_id=lease_id,
            index=position,
            kind="eval",
            row=prompt.row,
            token_ids=prompt.token_ids,
            text=prompt.text,
            answer=prompt.answer,
            columns=prompt.columns,
            data_set=prompt.data_set,
            num_samples=self._config.run.eval_samples,
            temperature=self._config.run.eval_temperature,
            seed=position,
            timeout_s=timeout_s,
        )

    def owns(self, lease_id: int) -> bool:
        return lease_id < 0

    def complete(self, lease_id: int, header: GroupHeader, versions: NDArray[np.int32]) -> None:
        """A group came back; one of an earlier evaluation is not counted."""
        lease = self._out.pop(lease_id, None)
        if lease is not None:
            self._done[lease.position] = header
            self._versions.update(np.unique(versions).tolist())

    def fail(self, lease_id: int) -> None:
        """A lease failed: the prompt is leased again, or given up and counted after replay.max_lease_attempts."""
        lease = self._out.pop(lease_id, None)
        if lease is None:
            return
        position = lease.position
        self._attempts[position] = self._attempts.get(position, 0) + 1
        if self._attempts[position] < self._config.replay.max_lease_attempts:
            self._waiting.append(position)
        else:
            self._num_failed += 1

    def expire(self, now_s: float) -> None:
        """Leases over their deadline count as failed."""
        for lease_id in [lease_id for lease_id, lease in self._out.items() if lease.deadline_s <= now_s]:
            self.fail(lease_id)

    def release(self, generator: str, kept: Collection[int] = ()) -> None:
        """Takes back a generator's leases, except those that it says it still has."""
        gone = [lease_id for lease_id, lease in self._out.items() if lease.generator == generator]
        for lease_id in set(gone) - set(kept):
            self._waiting.appendleft(self._out.pop(lease_id).position)

    def generator_died(self, generator: str) -> None:
        """Takes back the leases of a generator that died, which counts as a failure of each of its prompts."""
        for lease_id in [lease_id for lease_id, lease in self._out.items() if lease.generator == generator]:
            self.fail(lease_id)

    def take_result(self) -> EvaluationResult | None:
        """The figures, once, when every prompt has come back or was given up."""
        if self.version is None or self._waiting or self._out:
            return None
        version, self.version = self.version, None
        headers = [self._done[position] for position in sorted(self._done)]
        metrics = {
            "eval/accuracy": _mean([correct for header in headers for correct in header.correct]),
            "eval/reward_mean": _mean([r for header in headers for r in header.rewards if not np.isnan(r)]),
            "eval/length_mean": _mean([length for header in headers for length in header.lengths]),
            "eval/num_prompts": float(len(headers)),
            "eval/num_failed": float(self._num_failed),
            "eval/version": float(version),
            "eval/num_versions": float(len(self._versions)),
        }
        for name in sorted({header.data_set for header in headers} - {""}):
            of_set = [header for header in headers if header.data_set == name]
            metrics[f"eval/data/{name}/accuracy"] = _mean([correct for header in of_set for correct in header.correct])
        if self._config.run.eval_samples > 1:
            metrics[f"eval/pass@{self._config.run.eval_samples}"] = _mean([any(header.correct) for header in headers])
        return EvaluationResult(version, metrics, headers[0].sample_text if headers else "")


def first_lease_id(session: int) -> int:
    """The first evaluation lease of one replay process. No id is used twice in a run."""
    return -(session << 32) - 1


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
