"""Recovery of replay and the learners in a live run: one that dies is restarted, within a budget.

replay     ──▶ the same address, from the ledger ──▶ generators and learner say what they have, and ask again
a learner  ──▶ all ranks end ──▶ all start, from the latest checkpoint ──▶ the ledger has the batches since then
"""

from __future__ import annotations

import time

from asyncrl.cluster.ray_cluster import Cluster, Failure
from asyncrl.cluster.roles import RunPlan
from asyncrl.cluster.topology import Placement
from asyncrl.errors import RoleDiedError
from asyncrl.supervise.generators import Generators
from asyncrl.supervise.processes import Processes
from asyncrl.supervise.restarts import Restarts
from asyncrl.transport.control_server import ControlServer
from asyncrl.watch.console import LiveView

REPLAY = "replay"
LEARNERS = "learners"


class Recovery:
    """Keeps replay and the learners running."""

    def __init__(
        self,
        plan: RunPlan,
        cluster: Cluster,
        processes: Processes,
        generators: Generators,
        control: ControlServer,
        view: LiveView,
    ) -> None:
        self._cluster = cluster
        self._processes = processes
        self._generators = generators
        self._control = control
        self._view = view
        self._restarts = {
            REPLAY: Restarts(plan.config.replay.max_restarts, "replay.max_restarts"),
            LEARNERS: Restarts(plan.config.learner.max_restarts, "learner.max_restarts"),
        }
        self._lost: dict[str, list[Placement]] = {}
        """Died, and wait for their restart."""
        self._to_be_reminded = False
        """The replay process is new, and has not heard yet which generators are gone or to leave."""

    @property
    def awaits_learners(self) -> bool:
        """The learners have ended and will be restarted."""
        return LEARNERS in self._lost

    def can_replace(self, name: str, stopping: bool) -> bool:
        """Whether the run goes on without it, at least for a time."""
        part = _part(name)
        if part is None or stopping:
            return False
        return part in self._lost or self._restarts[part].allows(part, self._control.roles[name].is_ready)

    def handle_death(self, name: str, failure: Failure) -> None:
        """Ends what is left of it, and plans its restart."""
        self._control.event(name, failure.reason)
        part = _part(name)
        assert part is not None
        if part in self._lost:
            return
        names = [name] if part == REPLAY else self._processes.learners
        self._lost[part] = [self._processes.end(name) for name in names]
        self._view.event(f"{name} {failure.reason}; {part}: {self._restarts[part].grant(part, time.monotonic())}")

    def restart_due(self) -> None:
        """Restarts the roles whose delay is over.

        Raises:
            RoleDiedError: its node has left the cluster.
        """
        now_s = time.monotonic()
        if self._restarts[LEARNERS].take_due(now_s):
            self._processes.start_learners(self._take_lost(LEARNERS))
        if self._restarts[REPLAY].take_due(now_s):
            (placement,) = self._take_lost(REPLAY)
            self._processes.start_replay(placement)
            self._to_be_reminded = True
        if self._to_be_reminded and self._control.roles[REPLAY].is_ready:
            self._generators.remind_replay()
            self._to_be_reminded = False

    def _take_lost(self, part: str) -> list[Placement]:
        placements = self._lost.pop(part)
        for placement in placements:
            if self._cluster.has_left(placement.node):
                host = self._cluster.nodes[placement.node].host
                raise RoleDiedError(
                    f"{placement.name} cannot be started again: node {placement.node} ({host}) has left the cluster; "
                    "go on with the run on the nodes that are left: --resume"
                )
        return placements


def _part(name: str) -> str | None:
    """What is started again together with this role; None = it is a generator."""
    if name == REPLAY:
        return REPLAY
    return LEARNERS if name.startswith("learner-") else None
