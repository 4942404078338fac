"""Which role runs where: pure, so that `asyncrl check` can tell without starting anything.

    GPU   a generator takes tensor_parallel GPUs of one node, a learner rank one GPU, replay none.
    CPU   every process takes a share of its node's CPUs; with more processes than CPUs the shares are below 1.

The publish group has one rank per process that holds weights:

    rank     0            1 … k           k+1 … 2k        …      (k = tensor_parallel)
    holder   learner-0    generator-0     generator-1     …
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from asyncrl.config.checks.devices import Device
from asyncrl.config.checks.publish import PublishEngine, PublishTransport
from asyncrl.config.engines import engine_names
from asyncrl.config.schema import Config
from asyncrl.errors import ConfigError

Role = Literal["replay", "generator", "learner"]

SHARED_GPU = 0.5
"""Each side's part of a GPU that both sides share, as Ray counts."""


@dataclass(frozen=True)
class Node:
    """One machine's room."""

    num_cpus: float
    num_gpus: int


@dataclass(frozen=True)
class Placement:
    """One role's process and what Ray reserves for it. A generator's tensor-parallel workers are its children."""

    role: Role
    rank: int
    node: int
    """Index into the nodes that were planned for."""
    num_cpus: float
    num_gpus: float

    @property
    def name(self) -> str:
        """Such as `generator-0`; there is one replay process, called `replay`."""
        return self.role if self.role == "replay" else f"{self.role}-{self.rank}"


@dataclass(frozen=True)
class Topology:
    """Every process of a run, with the sizes of the groups they form."""

    device: Device
    placements: list[Placement]
    """Replay, then the generators, then the learners, each by rank."""
    tensor_parallel: int
    publish_engine: PublishEngine
    publish_transport: PublishTransport
    notes: list[str]
    """What a user should know about this plan, one sentence each."""

    @property
    def generators(self) -> list[Placement]:
        return [placement for placement in self.placements if placement.role == "generator"]

    @property
    def learners(self) -> list[Placement]:
        return [placement for placement in self.placements if placement.role == "learner"]

    def optimizer_threads(self, rank: int, num_cpus: float) -> int:
        """Of a rank's optimizer on the host: the node's CPUs, shared among the ranks there. Ray would give it one."""
        node = self.learners[rank].node
        return max(1, int(num_cpus) // sum(learner.node == node for learner in self.learners))

    @property
    def num_gpus(self) -> float:
        return sum(placement.num_gpus for placement in self.placements)

    @property
    def publish_world_size(self) -> int:
        """Learner 0 and every generator worker."""
        return 1 + len(self.generators) * self.tensor_parallel

    def publish_rank_offset(self, generator: int) -> int:
        """Rank of a generator's first worker in the publish group; its others follow."""
        return 1 + generator * self.tensor_parallel


def resolve_device(config: Config, nodes: list[Node]) -> Device:
    """`cluster.device`, where auto is gpu as soon as one node has a GPU."""
    if config.cluster.device == "auto":
        return "gpu" if any(node.num_gpus for node in nodes) else "cpu"
    return "gpu" if config.cluster.device == "gpu" else "cpu"


def plan(config: Config, nodes: list[Node], device: Device) -> Topology:
    """Place every role.

    Args:
        config: a checked configuration.
        nodes: the cluster; the launcher's own node first, which gets replay and, where it has room, the first learners.
        device: as `resolve_device` gave it.

    Raises:
        ConfigError: the cluster has too few GPUs, or none of its nodes enough for one generator.
    """
    assert nodes, "a cluster has at least the launcher's node"
    num_generators, num_learners = config.generator.count, config.learner.count
    parts = config.generator.tensor_parallel
    if config.cluster.share_gpu:
        generator_nodes = learner_nodes = [_first_node_with_gpu(nodes)]
    elif device == "gpu":
        generator_nodes, learner_nodes = _place_on_gpus(nodes, num_generators, num_learners, parts)
    else:
        generator_nodes, learner_nodes = _place_on_cpus(nodes, num_generators, num_learners, parts)

    roles: list[tuple[Role, int, int, int]] = [("replay", 0, 0, 1)]
    roles += [("generator", rank, node, parts) for rank, node in enumerate(generator_nodes)]
    roles += [("learner", rank, node, 1) for rank, node in enumerate(learner_nodes)]
    num_processes: Counter[int] = Counter()
    for _, _, node, num_workers in roles:
        num_processes[node] += num_workers
    shares = {node: _cpu_share(nodes[node], num_processes[node]) for node in num_processes}
    gpus_per_worker = 0.0 if device == "cpu" else SHARED_GPU if config.cluster.share_gpu else 1.0
    placements = [
        Placement(
            role=role,
            rank=rank,
            node=node,
            num_cpus=round(shares[node] * num_workers, 4),
            num_gpus=0.0 if role == "replay" else gpus_per_worker * num_workers,
        )
        for role, rank, node, num_workers in roles
    ]
    notes = [
        f"node {node} has {nodes[node].num_cpus:g} CPUs for {num_processes[node]} processes, which share them: "
        "nothing breaks, but speeds say little about hardware with room for each"
        for node, share in sorted(shares.items())
        if share < 1
    ]
    transport, reason = _publish_transport(config, device)
    notes.append(f"weights are published over {transport}: {reason}")
    return Topology(device, placements, parts, _publish_engine(config), transport, notes)


def more_generators(
    topology: Topology, placements: Sequence[Placement], nodes: list[Node], number: int
) -> list[Placement]:
    """Places for generators that join a live run, with the lowest ranks that are free.

    On CPU they reserve nothing: the processes that are there have shared out what there is.

    Args:
        placements: of every process that is there.

    Raises:
        ConfigError: too few GPUs are free.
    """
    if topology.num_gpus and topology.num_gpus % 1:
        raise ConfigError("with cluster.share_gpu=true the one generator has no room for others")
    parts, on_gpu = topology.tensor_parallel, topology.device == "gpu"
    taken = {placement.rank for placement in placements if placement.role == "generator"}
    ranks = itertools.islice((rank for rank in itertools.count() if rank not in taken), number)
    added: list[Placement] = []
    for rank in ranks:
        present = [*placements, *added]
        used = [sum(placement.num_gpus for placement in present if placement.node == k) for k in range(len(nodes))]
        free = [round(node.num_gpus - gpus) for node, gpus in zip(nodes, used, strict=True)]
        if on_gpu and max(free) < parts:
            raise ConfigError(
                f"a generator takes generator.tensor_parallel={parts} GPUs of one node; free are "
                f"{' + '.join(map(str, free))} by node, with {len(added)} of {number} more placed"
            )
        busy = Counter(placement.node for placement in present)
        node = max(range(len(nodes)), key=lambda k: free[k] if on_gpu else nodes[k].num_cpus / (busy[k] + 1))
        added.append(Placement("generator", rank, node, num_cpus=0.0, num_gpus=float(parts if on_gpu else 0)))
    return added


def gpus_needed(config: Config) -> int:
    """GPUs that this configuration takes on a GPU cluster."""
    shared = 1 if config.cluster.share_gpu else 0
    return config.generator.count * config.generator.tensor_parallel + config.learner.count - shared


def nodes_that_fit(config: Config, gpus_per_node: int = 8) -> list[Node]:
    """The smallest cluster of equal GPU nodes that this configuration fits, for describing it where there is none."""
    parts, num_gpus = config.generator.tensor_parallel, gpus_needed(config)
    num_cpus = num_gpus + 2  # one a process, also where two share a GPU
    if num_gpus <= gpus_per_node or parts > gpus_per_node:
        return [Node(num_cpus, num_gpus)]
    num_for_generators = math.ceil(config.generator.count / (gpus_per_node // parts))
    num_for_all = math.ceil(num_gpus / gpus_per_node)
    return [Node(num_cpus, gpus_per_node)] * max(num_for_generators, num_for_all)


def _first_node_with_gpu(nodes: list[Node]) -> int:
    for index, node in enumerate(nodes):
        if node.num_gpus:
            return index
    raise ConfigError("cluster.share_gpu=true needs 1 GPU, the cluster has 0")


def _place_on_gpus(
    nodes: list[Node], num_generators: int, num_learners: int, parts: int
) -> tuple[list[int], list[int]]:
    """Generators from the last node down, learners from the first up, so that the learners stay together.

    Every generator takes the same number of GPUs, so filling node by node wastes none that another order would use.
    """
    needed = num_generators * parts + num_learners
    free = [node.num_gpus for node in nodes]
    have = f"the cluster has {sum(free)} ({' + '.join(map(str, free))} by node)"
    if needed > sum(free):
        raise ConfigError(
            f"generator.count={num_generators} × generator.tensor_parallel={parts} + learner.count={num_learners} "
            f"needs {needed} GPUs, {have}; use fewer, add nodes, set cluster.share_gpu=true (one generator and one "
            "learner on one GPU) or cluster.device=cpu"
        )
    slots = [index for index in reversed(range(len(nodes))) for _ in range(free[index] // parts)]
    if num_generators > len(slots):
        raise ConfigError(
            f"each of generator.count={num_generators} generators needs generator.tensor_parallel={parts} GPUs of one "
            f"node; there is room for {len(slots)}: {have}"
        )
    generator_nodes = slots[:num_generators]
    taken = Counter(generator_nodes)
    rest = [index for index in range(len(nodes)) for _ in range(free[index] - parts * taken[index])]
    return generator_nodes, rest[:num_learners]


def _place_on_cpus(
    nodes: list[Node], num_generators: int, num_learners: int, parts: int
) -> tuple[list[int], list[int]]:
    """Each process to the node where most CPUs are left per process; replay already stands on node 0."""
    num_busy = [1] + [0] * (len(nodes) - 1)

    def place(workers: int) -> int:
        index = min(range(len(nodes)), key=lambda node: (num_busy[node] + workers) / nodes[node].num_cpus)
        num_busy[index] += workers
        return index

    learner_nodes = [place(1) for _ in range(num_learners)]
    return [place(parts) for _ in range(num_generators)], learner_nodes


def _cpu_share(node: Node, num_processes: int) -> float:
    """CPUs that one process of a node reserves, rounded down to what Ray can count so that the sum fits the node."""
    return min(1.0, math.floor(node.num_cpus / num_processes * 1e4) / 1e4)


def _publish_engine(config: Config) -> PublishEngine:
    """What travels. Without tensor parallelism a worker's own slices are everything."""
    match config.publish.engine:
        case "broadcast" | "sliced" | "delta" | "adapter" as engine:
            return engine
    if len(set(engine_names(config.generator))) > 1:  # workers of one stream have one plan, which is their engine's
        return "broadcast"
    return "sliced" if config.lora.rank is None else "adapter"


def _publish_transport(config: Config, device: Device) -> tuple[PublishTransport, str]:
    """How it travels, and why."""
    match config.publish.transport:
        case "gloo" | "nccl" as transport:
            return transport, "publish.transport says so"
    if device == "cpu":
        return "gloo", "there is no GPU"
    if config.cluster.share_gpu:
        return "gloo", "NCCL cannot put two ranks on one GPU"
    return "nccl", "each worker has a GPU of its own"
