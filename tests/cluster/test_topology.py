from __future__ import annotations

from collections import Counter
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncrl.cluster.topology import Node, gpus_needed, more_generators, nodes_that_fit, plan, resolve_device
from asyncrl.config.schema import Config
from asyncrl.errors import ConfigError


def config_of(generators: int, learners: int, parts: int = 1, **cluster: object) -> Config:
    config = Config()
    config.generator.count, config.learner.count, config.generator.tensor_parallel = generators, learners, parts
    for key, value in cluster.items():
        setattr(config.cluster, key, value)
    return config


clusters = st.lists(st.builds(Node, num_cpus=st.integers(1, 64), num_gpus=st.integers(0, 9)), min_size=1, max_size=5)
counts = st.integers(1, 6)


def fits_by_search(nodes: list[Node], generators: int, learners: int, parts: int) -> bool:
    """Whether some assignment of generators to nodes leaves a GPU for every learner, tried one by one."""

    def search(free: tuple[int, ...], left: int) -> bool:
        if left == 0:
            return sum(free) >= learners
        return any(
            search((*free[:index], free[index] - parts, *free[index + 1 :]), left - 1)
            for index in range(len(free))
            if free[index] >= parts and (index == 0 or free[index] != free[index - 1])
        )

    return search(tuple(sorted(node.num_gpus for node in nodes)), generators)


@given(clusters, counts, counts, st.sampled_from([1, 2, 4]))
def test_a_gpu_plan_exists_exactly_when_some_assignment_does_and_never_overfills_a_node(
    nodes: list[Node], generators: int, learners: int, parts: int
) -> None:
    config = config_of(min(generators, 3), learners, parts)
    if not fits_by_search(nodes, config.generator.count, learners, parts):
        with pytest.raises(ConfigError, match=f"generator.tensor_parallel={parts}"):
            plan(config, nodes, "gpu")
        return
    topology = plan(config, nodes, "gpu")
    used: Counter[int] = Counter()
    for placement in topology.placements:
        used[placement.node] += int(placement.num_gpus)
    assert all(used[index] <= node.num_gpus for index, node in enumerate(nodes))
    assert topology.num_gpus == gpus_needed(config)
    assert all(placement.num_gpus == parts for placement in topology.generators)


@given(clusters, counts, counts, st.sampled_from([1, 2, 4]))
def test_a_cpu_plan_always_exists_and_never_reserves_more_than_a_node_has(
    nodes: list[Node], generators: int, learners: int, parts: int
) -> None:
    topology = plan(config_of(generators, learners, parts), nodes, "cpu")
    reserved: Counter[int] = Counter()
    for placement in topology.placements:
        assert placement.num_cpus > 0
        assert placement.num_gpus == 0
        reserved[placement.node] += round(placement.num_cpus * 1e4)
    assert all(reserved[index] <= node.num_cpus * 10_000 for index, node in enumerate(nodes))
    names = [placement.name for placement in topology.placements]
    assert names == [
        "replay",
        *(f"generator-{rank}" for rank in range(generators)),
        *(f"learner-{rank}" for rank in range(learners)),
    ]


@given(counts, st.sampled_from([1, 2, 4]))
def test_the_publish_group_gives_every_generator_worker_a_rank_of_its_own(generators: int, parts: int) -> None:
    topology = plan(config_of(generators, 2, parts), [Node(64, 0)], "cpu")
    ranks = [
        topology.publish_rank_offset(placement.rank) + worker
        for placement in topology.generators
        for worker in range(parts)
    ]
    assert sorted([0, *ranks]) == list(range(topology.publish_world_size))


@given(counts, counts, st.sampled_from([1, 2, 4, 8, 16]))
def test_the_described_cluster_fits_and_one_node_fewer_would_not(generators: int, learners: int, parts: int) -> None:
    config = config_of(generators, learners, parts)
    nodes = nodes_that_fit(config)
    plan(config, nodes, "gpu")
    if len(nodes) > 1:
        with pytest.raises(ConfigError):
            plan(config, nodes[1:], "gpu")


def test_four_generators_and_four_learners_fit_two_cores_and_the_plan_says_that_they_share() -> None:
    topology = plan(config_of(4, 4), [Node(2, 0)], "cpu")
    assert sum(placement.num_cpus for placement in topology.placements) <= 2
    assert len(topology.notes) == 2
    assert "2 CPUs for 9 processes" in topology.notes[0]


def test_learners_stay_together_on_the_first_node() -> None:
    topology = plan(config_of(4, 8, 2), [Node(64, 8), Node(64, 8)], "gpu")
    assert {placement.node for placement in topology.learners} == {0}
    assert {placement.node for placement in topology.generators} == {1}


def test_too_few_gpus_is_an_error_with_both_numbers() -> None:
    with pytest.raises(ConfigError, match=r"needs 8 GPUs, the cluster has 6 \(4 \+ 2 by node\)"):
        plan(config_of(2, 4, 2), [Node(8, 4), Node(8, 2)], "gpu")


def test_a_generator_that_no_single_node_can_hold_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"tensor_parallel=4 GPUs of one node; there is room for 0"):
        plan(config_of(1, 1, 4), [Node(8, 3), Node(8, 3)], "gpu")


def test_one_gpu_is_shared_when_the_config_says_so() -> None:
    topology = plan(config_of(1, 1, share_gpu=True), [Node(8, 0), Node(8, 1)], "gpu")
    assert [placement.num_gpus for placement in topology.placements] == [0.0, 0.5, 0.5]
    assert {placement.node for placement in topology.placements if placement.num_gpus} == {1}
    assert topology.publish_transport == "gloo"
    with pytest.raises(ConfigError, match="needs 1 GPU"):
        plan(config_of(1, 1, share_gpu=True), [Node(8, 0)], "gpu")


@pytest.mark.parametrize(
    ("setting", "num_gpus", "device", "transport"),
    [("auto", 0, "cpu", "gloo"), ("auto", 2, "gpu", "nccl"), ("cpu", 2, "cpu", "gloo"), ("gpu", 2, "gpu", "nccl")],
)
def test_the_device_and_the_transport_of_a_publish_follow_the_cluster_and_the_plan_says_why(
    setting: str, num_gpus: int, device: str, transport: str
) -> None:
    config = config_of(1, 1, device=setting)
    nodes = [Node(4, num_gpus)]
    resolved = resolve_device(config, nodes)
    assert resolved == device
    topology = plan(config, nodes, resolved)
    assert topology.publish_transport == transport
    assert any(note.startswith(f"weights are published over {transport}: ") for note in topology.notes)


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_tensor_parallel_workers_receive_their_slices_alone_on_every_device(device: Literal["cpu", "gpu"]) -> None:
    nodes = [Node(8, 8 if device == "gpu" else 0)]
    assert plan(config_of(1, 1, 2), nodes, device).publish_engine == "sliced"


# ── generators that join ──


def test_a_generator_that_joins_takes_the_lowest_free_rank_and_a_node_with_its_gpus_free() -> None:
    nodes = [Node(16, 4), Node(16, 4)]
    topology = plan(config_of(generators=2, learners=2, parts=2), nodes, "gpu")
    left = [placement for placement in topology.placements if placement.name != "generator-0"]
    added = more_generators(topology, left, nodes, 2)
    assert [placement.name for placement in added] == ["generator-0", "generator-2"]
    for node in range(2):
        assert sum(placement.num_gpus for placement in [*left, *added] if placement.node == node) <= 4
    with pytest.raises(ConfigError, match=r"=2 GPUs of one node; free are 0 \+ 0 by node, with 2 of 3 more placed"):
        more_generators(topology, left, nodes, 3)


def test_on_cpu_generators_join_where_most_cpus_are_left_and_reserve_none() -> None:
    nodes = [Node(2, 0), Node(8, 0)]
    topology = plan(config_of(generators=1, learners=1), nodes, "cpu")
    added = more_generators(topology, topology.placements, nodes, 3)
    assert [placement.rank for placement in added] == [1, 2, 3]
    assert {placement.node for placement in added} == {1}
    assert {placement.num_cpus for placement in added} == {0.0}


def test_an_optimizer_on_the_host_takes_a_nodes_cpus_shared_among_the_ranks_there() -> None:
    topology = plan(config_of(generators=1, learners=5), [Node(64, 4), Node(32, 2)], "gpu")
    assert [learner.node for learner in topology.learners].count(topology.learners[0].node) > 1
    of_node = dict(enumerate((64, 32)))
    for rank, learner in enumerate(topology.learners):
        beside = [other for other in topology.learners if other.node == learner.node]
        assert topology.optimizer_threads(rank, of_node[learner.node]) == of_node[learner.node] // len(beside)
    assert topology.optimizer_threads(0, num_cpus=1) == 1
