"""What a simulated run leaves: a record a step."""

from __future__ import annotations

from dataclasses import dataclass

from asyncrl.simulate.fleet import FleetTotals
from asyncrl.simulate.setting import Setting


@dataclass(frozen=True)
class StepRecord:
    """One step of the learner, on the virtual clock."""

    step: int
    start_s: float
    wait_s: float
    """For the batch."""
    train_s: float
    publish_wait_s: float
    """For the publish of the version before, or with nccl for this one."""
    end_s: float
    queue_depth: int
    """Finished groups left in the queue when this batch was taken."""
    eta: int
    num_samples: int
    tokens_by_lag: dict[int, int]
    num_masked_tokens: int
    """Over the bound."""
    fleet: FleetTotals
    """At the end of the step."""

    @property
    def num_tokens(self) -> int:
        """Sampled ones; prompts do not count."""
        return sum(self.tokens_by_lag.values())

    @property
    def lag_mean(self) -> float:
        """Over its tokens."""
        return sum(lag * count for lag, count in self.tokens_by_lag.items()) / self.num_tokens


@dataclass(frozen=True)
class SimulatedRun:
    """All of it."""

    setting: Setting
    steps: list[StepRecord]
    num_filtered: int
    num_requeued: int
    num_quarantined: int
    num_resampled_tokens: int
    """Of groups that were sampled again, being over the bound (stragglers=requeue)."""
    num_late_leases: int
    """Those that took longer than replay.lease_timeout_s; a real run would have given their prompts to others."""
