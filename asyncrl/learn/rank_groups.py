"""Further process groups of learner ranks, beside the one that all of them join."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from itertools import count

import torch.distributed as dist

from asyncrl.publish.groups.members import require_members

_numbers = count()
"""Ranks make groups in the same order, so a group has the same number on all of them."""


def rank_group(ranks: Sequence[int], timeout_s: float, backend: str | None = None) -> dist.ProcessGroup:
    """A group of these ranks, who have proved that they belong to it. Collective: every rank makes every group.

    Args:
        timeout_s: of what the group does.
        backend: None = that of the group of all.

    Raises:
        RuntimeError: somebody else has taken a rank's place, or one did not come in time.
    """
    group: dist.ProcessGroup = dist.new_group(list(ranks), timedelta(seconds=timeout_s), backend)
    number = next(_numbers)
    if dist.get_rank() in ranks:
        store = dist.PrefixStore(f"group {number}", dist.distributed_c10d._get_default_store())
        require_members(group, store, dist.get_rank(group), len(ranks))
    return group
