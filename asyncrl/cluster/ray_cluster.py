"""Ray: starting or joining it, its nodes, one actor per role. The only module that knows Ray."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from asyncrl import devices
from asyncrl.cluster.environment import environment
from asyncrl.cluster.interfaces import address_of
from asyncrl.cluster.joined_ray import join
from asyncrl.cluster.machine import this_node
from asyncrl.cluster.own_ray import OwnRay
from asyncrl.cluster.role_actor import RoleActor
from asyncrl.cluster.roles import RunPlan
from asyncrl.cluster.topology import Node, Placement, resolve_device
from asyncrl.config.schema import Config
from asyncrl.errors import DeadlineError, FinalError, RoleDiedError, UserError
from asyncrl.run.directory import rendezvous_dir
from asyncrl.transport.sockets import LOOPBACK, Keys, Network

NODE_TIMEOUT_S = 2.0
KIND_PREFIX = "accelerator_type:"
"""Of the resource by which Ray tells what kind of GPU a node has."""
NO_ROOM = Node(num_cpus=0.0, num_gpus=0)


@dataclass(frozen=True)
class ClusterNode:
    """A Ray node: its id and address, and the room it has."""

    ray_id: str
    host: str
    room: Node


@dataclass(frozen=True)
class RoleProcess:
    """A started role: Ray's handle, and the reference that resolves when its `run` ends."""

    placement: Placement
    actor: Any
    ended: Any
    started_s: float
    """time.monotonic."""


class Cluster:
    """A Ray started on this machine, or a running one that is joined.

    Raises:
        ConfigError: cluster.ray_address cannot be joined, or lets everybody in.
    """

    def __init__(self, config: Config, run_dir: Path) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        self._own: OwnRay | None = None
        if config.cluster.ray_address is not None:
            join(config.cluster.ray_address, config.cluster.allow_open_ray, quiet)
        else:
            device = resolve_device(config, [this_node()])
            self._own = OwnRay(quiet, environment("replay", device, config))
        own_id = ray.get_runtime_context().get_node_id()
        alive = _alive_nodes()
        alive.sort(key=lambda node: (node.ray_id != own_id, node.host))
        self.nodes = alive
        """The launcher's own node is first. Nodes that join are appended; nodes that leave keep their place."""
        self._keys = Keys.generate()
        shutil.rmtree(rendezvous_dir(run_dir), ignore_errors=True)  # of an earlier launch
        # With a name of its own: a node on which it is missing has another run directory under the same path.
        self._rendezvous_dir = rendezvous_dir(run_dir) / secrets.token_hex(8)
        self._rendezvous_dir.mkdir(parents=True)
        self._interface = config.cluster.interface
        self._spans_machines = self._interface is not None or len({node.host for node in alive}) > 1

    @property
    def network(self) -> Network:
        """The launcher's network."""
        network = self._network(self.nodes[0])
        return network if self._interface is None else replace(network, host=address_of(self._interface))

    def _network(self, node: ClusterNode) -> Network:
        """With the address by which Ray knows the node; with cluster.interface a role looks for another there."""
        return Network(node.host if self._spans_machines else LOOPBACK, self._keys, self._rendezvous_dir)

    @property
    def gpu_kinds(self) -> list[str]:
        """By Ray's names, such as H100."""
        resources = {name for node in ray.nodes() if node["Alive"] for name in node["Resources"]}
        return sorted(name.removeprefix(KIND_PREFIX) for name in resources if name.startswith(KIND_PREFIX))

    def has_left(self, node: int) -> bool:
        """Whether this one of `nodes` has left the cluster."""
        ray_id = self.nodes[node].ray_id
        return not any(_is_alive(one) for one in ray.nodes() if one["NodeID"] == ray_id)

    def refresh_nodes(self) -> list[Node]:
        """The room of each node as it is now: none on one that has left. Nodes that have joined are added.

        A node on another machine is left out when the run began on one machine alone: its sockets are on loopback.
        """
        alive = {node.ray_id: node for node in _alive_nodes()}
        known = {node.ray_id for node in self.nodes}
        for node in alive.values():
            if node.ray_id not in known and (self._spans_machines or node.host == self.nodes[0].host):
                self.nodes.append(node)
        return [node.room if node.ray_id in alive else NO_ROOM for node in self.nodes]

    def create(
        self, plan: RunPlan, placement: Placement, kind: type[RoleActor] = RoleActor, num_threads: int = 1
    ) -> Any:
        """The actor of one role, on the node that the topology chose; returns at once.

        Args:
            num_threads: its methods that run at the same time.

        Raises:
            RunError: Ray's token is gone.
        """
        if self._own is not None:
            self._own.require_token()
        node = self.nodes[placement.node]
        variables = environment(placement.role, plan.topology.device, plan.config)
        if self._own is not None:  # a process whose environment is Ray's own starts in half the time
            variables = dict(variables.items() - self._own.variables.items())
        options = {
            "num_cpus": placement.num_cpus,
            "num_gpus": placement.num_gpus,
            "max_restarts": 0,
            "max_concurrency": num_threads,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(node.ray_id, soft=False),
            "runtime_env": {"env_vars": variables} if variables else {},
        }
        actor = ray.remote(kind).options(**options)
        return actor.remote(plan, placement, self._network(node))

    def shutdown(self) -> None:
        if self._own is None:
            ray.shutdown()
        else:
            self._own.shutdown()


def ask(actor: Any, method: str, timeout_s: float, name: str, while_waiting: Callable[[], None]) -> Any:
    """The result of a short method of a role's actor.

    Args:
        while_waiting: called again and again; takes a moment.

    Raises:
        DeadlineError: Ray did not start the role in time.
        RoleDiedError: the role's process ended.
    """
    answer, deadline_s = getattr(actor, method).remote(), time.monotonic() + timeout_s
    while not ray.wait([answer], timeout=0)[0]:
        if time.monotonic() > deadline_s:
            raise DeadlineError(f"the process of {name} to start", timeout_s, "Ray")
        while_waiting()
    try:
        return ray.get(answer)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except RayError as error:
        raise RoleDiedError(f"{name} ended while it started: {error}") from error


def call(actor: Any, name: str, method: str, *args: Any) -> Future[Any]:
    """Starts a method of a role's actor. The future raises what the method raised, or RoleDiedError."""
    outcome: Future[Any] = Future()

    def settle(done: Future[Any]) -> None:
        error = done.exception()
        if error is None:
            outcome.set_result(done.result())
        elif isinstance(error, ray.exceptions.RayTaskError):
            outcome.set_exception(error.cause)
        else:
            died = RoleDiedError(f"{name} ended: {str(error).splitlines()[0]}")
            died.__cause__ = error
            outcome.set_exception(died)

    getattr(actor, method).remote(*args).future().add_done_callback(settle)
    return outcome


def has_ended(process: RoleProcess) -> bool:
    """The role's `run` returned or failed."""
    done, _ = ray.wait([process.ended], timeout=0)
    return bool(done)


@dataclass(frozen=True)
class Failure:
    """Why a role's `run` did not end well."""

    reason: str
    """One line, to be read after the role's name."""
    process_died: bool
    """Killed, crashed or frozen; False = it raised an error, perhaps because another role had died."""
    is_final: bool = False
    """A restart would only meet it again."""


def failure_of(process: RoleProcess) -> Failure | None:
    """Why a role that has ended failed; None = it ended well."""
    try:
        ray.get(process.ended, timeout=0)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, FinalError | UserError):
            return Failure(f"ended the run: {error.cause}", process_died=False, is_final=True)
        return Failure(f"failed: {type(error.cause).__name__}: {error.cause}", process_died=False)
    except RayError:
        return Failure("failed: its process died (killed, crashed or out of memory)", process_died=True)
    return None


def kill(process: RoleProcess) -> None:
    """Ends a role's process at once."""
    ray.kill(process.actor)


def _alive_nodes() -> list[ClusterNode]:
    return [_cluster_node(node) for node in ray.nodes() if _is_alive(node)]


def _is_alive(node: dict[str, Any]) -> bool:
    """Whether Ray counts it and it answers. Ray takes about 15 s to see that a node has gone."""
    if not node["Alive"]:
        return False
    try:
        socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), NODE_TIMEOUT_S).close()
    except OSError:
        return False
    return True


def _cluster_node(node: dict[str, Any]) -> ClusterNode:
    resources = node["Resources"]
    room = Node(num_cpus=resources.get("CPU", 0.0), num_gpus=int(resources.get(devices.RAY_RESOURCE, 0)))
    return ClusterNode(node["NodeID"], node["NodeManagerAddress"], room)
