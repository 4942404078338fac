"""The generators of a live run: those that die come back, others join or leave as `asyncrl scale` asks.

joins    process ──▶ Hello to replay ──▶ weights from the learner ──▶ leases
leaves   Drain to replay ──▶ its last leases end, a publish goes without it ──▶ Drained ──▶ Stop ──▶ process ends
dies     Gone to replay ──▶ its leases go to others ──▶ starts again, within a budget; elsewhere if its node has left
"""

from __future__ import annotations

import time
from dataclasses import replace

from asyncrl.cluster.ray_cluster import Cluster, Failure
from asyncrl.cluster.roles import RunPlan
from asyncrl.cluster.topology import Placement, more_generators
from asyncrl.errors import ConfigError
from asyncrl.supervise.processes import Processes
from asyncrl.supervise.restarts import Restarts
from asyncrl.transport.control_server import ControlServer
from asyncrl.transport.messages.scaling import Drain, Gone
from asyncrl.watch.console import LiveView


class Generators:
    """Keeps the wanted number of generators running."""

    def __init__(
        self, plan: RunPlan, cluster: Cluster, processes: Processes, control: ControlServer, view: LiveView
    ) -> None:
        self._plan = plan
        self._cluster = cluster
        self._processes = processes
        self._control = control
        self._view = view
        self._restarts = Restarts(plan.config.generator.max_restarts, "generator.max_restarts")
        self._lost: dict[str, Placement] = {}
        """Died, and wait for their restart."""
        self._joined: set[str] = set()
        """Came after the start of the run, and have not died since."""
        self._leaving: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return self._processes.placements[name].role == "generator"

    # ── deaths ──

    def can_replace(self, name: str) -> bool:
        """Whether the run goes on without it, at least for a time."""
        if name not in self:
            return False
        came_up = self._control.roles[name].is_ready
        return name in self._leaving or self._drops(name) or self._restarts.allows(name, came_up)

    def handle_death(self, name: str, failure: Failure, stopping: bool) -> None:
        """Ends what is left of it, tells replay, and plans its restart, unless it was to leave or never came up."""
        dropped = self._drops(name)
        self._joined.discard(name)
        placement = self._processes.end(name)
        self._control.send("replay", Gone(name, failure.reason))
        self._control.event(name, failure.reason)
        self._control.roles[name].metrics = {}  # the rows count it among those that serve no more
        if stopping:
            plan = "the run is ending"
        elif name in self._leaving or dropped:
            plan = "it was to leave" if name in self._leaving else "it never came up and is left out"
            self._forget(name)
        else:
            self._lost[name] = placement
            plan = self._restarts.grant(name, time.monotonic())
        self._view.event(f"{name} {failure.reason}; {plan}")

    def remind_replay(self) -> None:
        """Repeats earlier orders to a replay process that is new and may not know them."""
        for name in self._lost:
            self._control.send("replay", Gone(name, "is being started again"))
        for name in self._leaving - self._processes.told_to_end:
            self._control.send("replay", Drain(name))

    def _drops(self, name: str) -> bool:
        """Whether it is a newcomer that failed before it came up. It is left out, and the run goes on as before."""
        return name in self._joined and not self._control.roles[name].is_ready

    def restart_due(self) -> None:
        """Restarts the generators whose delay is over. Forgets the drained ones that have ended."""
        for name in self._restarts.take_due(time.monotonic()):
            if name in self._lost:  # else it was to leave
                self._start_again(name)
        for name in self._processes.told_to_end - set(self._processes.alive):
            self._processes.end(name)
            self._forget(name)
            self._view.event(f"{name} has left")

    def _start_again(self, name: str) -> None:
        """Restarts it where it was, or on another node if its own has left the cluster."""
        placement = self._lost.pop(name)
        if self._cluster.has_left(placement.node):
            try:
                (place,) = self._places(1)
            except ConfigError as error:
                self._lost[name] = placement
                self._restarts.postpone(name, time.monotonic())
                self._view.event(f"{name} waits: node {placement.node} has left the cluster, and {error}")
                return
            self._view.event(f"{name} starts on node {place.node}: node {placement.node} has left the cluster")
            placement = replace(place, rank=placement.rank)
        self._processes.start(placement)

    def _forget(self, name: str) -> None:
        self._leaving.discard(name)
        self._joined.discard(name)
        self._control.forget(name)

    # ── joining and leaving ──

    def scale(self, num_generators: int) -> str:
        """Changes the number of generators. Returns what will happen, for people.

        Raises:
            ConfigError: that is impossible, or not now.
        """
        present = self._present
        if num_generators < 1:
            raise ConfigError(f"--generators {num_generators}: a run needs one at least")
        if not all(state.is_ready for name, state in self._control.roles.items() if name not in self._lost):
            raise ConfigError("not every role of the run has come up yet; try again when the last change is done")
        names = self._join(num_generators - len(present)) if num_generators > len(present) else []
        names += self._leave(present[num_generators:])
        text = f"generators: {len(present)} → {num_generators}" + f" ({', '.join(names)})" * bool(names)
        self._view.event(text)
        return text

    @property
    def _present(self) -> list[str]:
        """The names of the generators that are to stay, by rank."""
        placements = {**self._processes.placements, **self._lost}
        generators = [placement for placement in placements.values() if placement.role == "generator"]
        generators.sort(key=lambda placement: placement.rank)
        return [placement.name for placement in generators if placement.name not in self._leaving]

    def _join(self, number: int) -> list[str]:
        added = self._places(number)
        for placement in added:
            self._joined.add(placement.name)
            self._processes.start(placement)
        return [f"{placement.name} joins" for placement in added]

    def _places(self, number: int) -> list[Placement]:
        """Placements for that many more generators, on the nodes that are there now.

        Raises:
            ConfigError: there is no room.
        """
        placements = [*self._processes.placements.values(), *self._lost.values()]
        return more_generators(self._plan.topology, placements, self._cluster.refresh_nodes(), number)

    def _leave(self, names: list[str]) -> list[str]:
        for name in names:
            if name in self._lost:
                del self._lost[name]
                self._forget(name)
            else:
                self._leaving.add(name)
                self._control.send("replay", Drain(name))
        return [f"{name} leaves" for name in names]

    def drained(self, name: str) -> None:
        """It holds no lease any more, and no publish needs it."""
        if name in self._leaving:  # else it died meanwhile
            self._processes.told_to_end.add(name)
            self._control.stop([name], "it is not needed any more (asyncrl scale)")
