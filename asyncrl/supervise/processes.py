"""The processes of a run's roles: starting, checking and ending them."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from asyncrl.cluster.ray_cluster import Cluster, Failure, RoleProcess, ask, failure_of, has_ended, kill
from asyncrl.cluster.roles import RunPlan
from asyncrl.cluster.topology import Placement
from asyncrl.run.trainer_state import TrainerState, latest, read_state
from asyncrl.transport.control_server import ControlServer


class Processes:
    """The processes by role name. A role that was ended on purpose is no longer among them."""

    def __init__(self, plan: RunPlan, cluster: Cluster, control: ControlServer) -> None:
        self._plan = plan
        self._cluster = cluster
        self._control = control
        self._processes: dict[str, RoleProcess] = {}
        self._endpoints = ("", "")
        """Of replay, and the file in which the learner ranks meet."""
        self._num_restarts: Counter[str] = Counter()
        """Of replay and the learners: 0 for the first."""
        self.told_to_end: set[str] = set()
        """Generators that are to end before the other roles."""

    def start_all(self, while_waiting: Callable[[], None]) -> None:
        """Creates every role's process and sets it running.

        Args:
            while_waiting: hears the roles that are up already, and takes a moment.

        Raises:
            ConfigError: replay.port is in use.
            DeadlineError, RoleDiedError: a process did not start.
        """
        placements = self._plan.topology.placements
        actors = {placement.name: self._cluster.create(self._plan, placement) for placement in placements}
        for actor in actors.values():
            actor.load.remote()  # what fails in it fails again in `run`, which says so
        timeout_s = self._plan.config.run.startup_timeout_s
        replay_endpoint = ask(actors["replay"], "bind_replay", timeout_s, "replay", while_waiting)
        self._endpoints = (replay_endpoint, self._new_rendezvous())
        for placement in placements:
            self._run(placement, actors[placement.name])

    def start(self, placement: Placement) -> None:
        """A generator that joins the live run, under a new name or again."""
        self._control.expect_restart(placement.name)
        self._run(placement, self._cluster.create(self._plan, placement))

    def start_replay(self, placement: Placement) -> None:
        """Restarts replay at the address that the other roles know."""
        self._num_restarts["replay"] += 1
        self.start(placement)

    def start_learners(self, placements: list[Placement]) -> None:
        """Restarts all ranks from the latest checkpoint. Does not wait for their processes."""
        checkpoint = latest(self._plan.run_dir)
        state = TrainerState() if checkpoint is None else read_state(checkpoint)
        plan = replace(self._plan, resume_from=checkpoint, state=state)
        actors = [self._cluster.create(plan, placement) for placement in placements]
        self._endpoints = (self._endpoints[0], self._new_rendezvous())
        for placement, actor in zip(placements, actors, strict=True):
            self._control.expect_restart(placement.name)
            self._num_restarts[placement.name] += 1
            self._run(placement, actor)

    def _new_rendezvous(self) -> str:
        """For one life of the learners; torch makes the file, and would take an old one's contents for its own."""
        folder = self._cluster.network.rendezvous_dir
        assert folder is not None, "the network of a run has one"
        return str(folder / f"learners-{secrets.token_hex(8)}")

    def _run(self, placement: Placement, actor: Any) -> None:
        ended = actor.run.remote(*self._endpoints, self._num_restarts[placement.name])
        self._processes[placement.name] = RoleProcess(placement, actor, ended, time.monotonic())

    @property
    def placements(self) -> dict[str, Placement]:
        return {name: process.placement for name, process in self._processes.items()}

    @property
    def alive(self) -> list[str]:
        return [name for name, process in self._processes.items() if not has_ended(process)]

    @property
    def learners(self) -> list[str]:
        return [name for name, process in self._processes.items() if process.placement.role == "learner"]

    @property
    def learners_ended(self) -> bool:
        return not set(self.learners) & set(self.alive)

    def failures(self, stopping: bool) -> dict[str, Failure]:
        """The roles that failed, are silent or did not come up. While the run stops, a role may end and be silent."""
        found = {name: self._failure(name, process, stopping) for name, process in self._processes.items()}
        return {name: failure for name, failure in found.items() if failure is not None}

    def _failure(self, name: str, process: RoleProcess, stopping: bool) -> Failure | None:
        if not has_ended(process):
            return None if stopping else self._lateness(name, process)
        failure = failure_of(process)
        may_end = stopping or process.placement.role == "learner" or name in self.told_to_end
        if failure is None and not may_end:
            return Failure("failed: it ended before the run was complete", process_died=False)
        return failure

    def _lateness(self, name: str, process: RoleProcess) -> Failure | None:
        run, state, now_s = self._plan.config.run, self._control.roles[name], time.monotonic()
        if not state.is_ready:  # importing vLLM or torch can hold back heartbeats for long on a busy machine
            if now_s - process.started_s > run.startup_timeout_s:
                late = f"did not come up within {run.startup_timeout_s:.0f} s (run.startup_timeout_s)"
                return Failure(f"{late}, its phase: {state.phase}", process_died=True)
        elif state.last_seen_s is not None and now_s - state.last_seen_s > run.heartbeat_timeout_s:
            late = f"was silent for {run.heartbeat_timeout_s:.0f} s (run.heartbeat_timeout_s)"
            return Failure(f"{late} in phase '{state.phase}'", process_died=True)
        return None

    def end(self, name: str) -> Placement:
        """Ends what is left of a role and forgets its process."""
        process = self._processes.pop(name)
        self.told_to_end.discard(name)
        kill(process)
        return process.placement

    def kill_all(self) -> None:
        """Ends what is left of the roles at once."""
        for name in self.alive:
            kill(self._processes[name])
