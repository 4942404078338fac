"""Completions whose behaviour logprobs are no numbers; in the loss a single NaN would spoil the whole update."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np

from asyncrl.types import Batch, Group

log = logging.getLogger(__name__)


def quarantine_broken_logprobs(batch: Batch) -> Batch:
    """The batch with each completion that has a NaN or infinite log μ quarantined (reward NaN, those log μ set to 0).

    Such a completion is named in a warning by its group and its prompt's row.
    """
    return replace(batch, groups=[_quarantine(group) for group in batch.groups])


def _quarantine(group: Group) -> Group:
    broken = ~np.isfinite(group.logprobs)
    if not broken.any():
        return group
    completions = np.unique(np.repeat(np.arange(group.size), group.lengths)[broken])
    log.warning(
        "group %d (prompt row %d): %d tokens of completions %s have a log-probability that is no finite number; "
        "these completions are quarantined",
        group.index,
        group.row,
        broken.sum(),
        completions.tolist(),
    )
    rewards = group.rewards.copy()
    rewards[completions] = np.nan
    return replace(group, rewards=rewards, logprobs=np.where(broken, np.float32(0), group.logprobs))
