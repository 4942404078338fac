"""Ray: starting or joining it, its nodes, one actor per role. The only module that knows Ray."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from asyncrl.cluster.environment import environment
from asyncrl.cluster.role_actor import RoleActor
from asyncrl.cluster.roles import RunPlan
from asyncrl.cluster.topology import Node, Placement
from asyncrl.config.schema import ClusterConfig
from asyncrl.errors import ConfigError, DeadlineError, FinalError, RoleDiedError, UserError
from asyncrl.transport.sockets import LOOPBACK, Keys, Network

OBJECT_STORE_BYTES = 128 << 20
"""Rollouts and weights do not go through Ray; this is about the least it accepts."""

RAY_SETTINGS = {"kill_worker_timeout_milliseconds": 500, "worker_niceness": 0}
"""How long a process that is to be killed may take to answer Ray before it gets SIGKILL. A frozen one never answers.
Ray's default is 5 s; meanwhile a publish waits for the frozen generator, and new learners wait for the old. With Ray's
default niceness of 15, any other program on the machine would starve the roles. A cluster that is joined has its own
settings."""

PROBE_TIMEOUT_S = 5.0
NODE_TIMEOUT_S = 2.0
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
        ConfigError: cluster.ray_address cannot be joined.
    """

    def __init__(self, config: ClusterConfig) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if config.ray_address is None:
            own = {
                "object_store_memory": OBJECT_STORE_BYTES,
                "include_dashboard": False,
                "_system_config": RAY_SETTINGS,
            }
            ray.init(address="local", **own, **quiet)
        else:
            _join(config.ray_address, quiet)
        own_id = ray.get_runtime_context().get_node_id()
        alive = _alive_nodes()
        alive.sort(key=lambda node: (node.ray_id != own_id, node.host))
        self.nodes = alive
        """The launcher's own node is first. Nodes that join are appended; nodes that leave keep their place."""
        self._keys = Keys.generate() if len(self.nodes) > 1 else None

    @property
    def network(self) -> Network:
        """The launcher's network."""
        return self._network(self.nodes[0])

    def _network(self, node: ClusterNode) -> Network:
        return Network(node.host if self._keys else LOOPBACK, self._keys)

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
            if node.ray_id not in known and (self._keys is not None or node.host == self.nodes[0].host):
                self.nodes.append(node)
        return [node.room if node.ray_id in alive else NO_ROOM for node in self.nodes]

    def create(self, plan: RunPlan, placement: Placement) -> Any:
        """The actor of one role, on the node that the topology chose; returns at once."""
        node = self.nodes[placement.node]
        options = {
            "num_cpus": placement.num_cpus,
            "num_gpus": placement.num_gpus,
            "max_restarts": 0,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(node.ray_id, soft=False),
            "runtime_env": {"env_vars": environment(placement.role, plan.topology.device, plan.config)},
        }
        actor = ray.remote(RoleActor).options(**options)
        return actor.remote(plan, placement, self._network(node))

    def shutdown(self) -> None:
        ray.shutdown()


def _join(address: str, options: dict[str, Any]) -> None:
    """Connects to a running cluster; probes it first, since Ray ends this process when nobody answers there."""
    host, _, port = address.rpartition(":")
    try:
        if port.isdigit():
            socket.create_connection((host, int(port)), timeout=PROBE_TIMEOUT_S).close()
        ray.init(address=address, **options)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cluster.ray_address={address}: no Ray cluster answers there: {error}") from error


def ask(actor: Any, method: str, timeout_s: float, name: str) -> Any:
    """The result of a short method of a role's actor.

    Raises:
        DeadlineError: Ray did not start the role in time.
        RoleDiedError: the role's process ended.
    """
    try:
        return ray.get(getattr(actor, method).remote(), timeout=timeout_s)
    except ray.exceptions.GetTimeoutError as error:
        raise DeadlineError(f"the process of {name} to start", timeout_s, "Ray") from error
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except RayError as error:
        raise RoleDiedError(f"{name} ended while it started: {error}") from error


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
    room = Node(num_cpus=resources.get("CPU", 0.0), num_gpus=int(resources.get("GPU", 0)))
    return ClusterNode(node["NodeID"], node["NodeManagerAddress"], room)
