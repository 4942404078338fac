"""The ledger and the controller of η that a configuration asks for: those of a run, and those of a simulated one."""

from __future__ import annotations

from typing import cast

from asyncrl.config.schema import Config, ReplayConfig
from asyncrl.ledger.curriculum import Curriculum
from asyncrl.ledger.ledger import Ledger
from asyncrl.ledger.records import LedgerSnapshot, Stragglers
from asyncrl.ledger.staleness_controller import StalenessController


def ledger_of(
    config: Config,
    num_steps: int,
    snapshot: LedgerSnapshot | None = None,
    now_s: float = 0.0,
    curriculum: Curriculum | None = None,
) -> Ledger:
    """
    Args:
        config: a checked configuration.
        num_steps, snapshot, now_s, curriculum: as `Ledger` takes them.
    """
    refills = config.algorithm.zero_variance == "refill"
    return Ledger(
        batch_size=config.learner.batch_size,
        max_staleness=config.replay.max_staleness,
        num_steps=num_steps,
        stragglers=cast(Stragglers, config.replay.stragglers),
        window=config.replay.window,
        lease_timeout_s=config.replay.lease_timeout_s,
        max_attempts=config.replay.max_lease_attempts,
        max_refill_prompts=config.algorithm.max_refill_batches * config.learner.batch_size if refills else 0,
        curriculum=curriculum,
        snapshot=snapshot,
        now_s=now_s,
    )


def controller_of(replay: ReplayConfig, eta: int | None = None) -> StalenessController | None:
    """None where η stays at replay.max_staleness.

    Args:
        eta: where to go on from; None = from the beginning.
    """
    if replay.ess_target is None:
        return None
    return StalenessController(
        ess_target=replay.ess_target, min_staleness=replay.min_staleness, max_staleness=replay.max_staleness, eta=eta
    )
