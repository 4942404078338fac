"""Roles whose Ray node has left, with a cluster, processes and a clock that the test moves."""

from types import SimpleNamespace
from typing import Any

import pytest

from asyncrl.cluster.ray_cluster import NO_ROOM, ClusterNode, Failure
from asyncrl.cluster.topology import Node, Placement, plan
from asyncrl.config.schema import Config
from asyncrl.errors import RoleDiedError
from asyncrl.supervise.generators import Generators
from asyncrl.supervise.recovery import Recovery
from asyncrl.supervise.restarts import LONGEST_DELAY_S
from asyncrl.transport.control_server import RoleState

DIED = Failure("failed: its process died", process_died=True)


class StandIn:
    """Two nodes with two GPUs each: generator-0 and generator-1 on node 1, the learner and replay on node 0."""

    def __init__(self) -> None:
        config = Config()
        config.generator.count, config.learner.count = 2, 1
        self.nodes = [ClusterNode(f"id-{k}", f"10.0.0.{k}", Node(8, 2 - (k == 0))) for k in range(2)]
        topology = plan(config, [node.room for node in self.nodes], "gpu")
        self.run_plan = SimpleNamespace(config=config, topology=topology)
        self.left: set[int] = set()
        self.placements = {placement.name: placement for placement in topology.placements}
        self.roles = {name: RoleState(is_ready=True) for name in self.placements}
        self.started: list[Placement] = []
        self.told: list[Any] = []
        self.events: list[str] = []
        self.told_to_end: set[str] = set()

    # the cluster

    def has_left(self, node: int) -> bool:
        return node in self.left

    def refresh_nodes(self) -> list[Node]:
        return [NO_ROOM if k in self.left else node.room for k, node in enumerate(self.nodes)]

    # the processes

    @property
    def alive(self) -> list[str]:
        return list(self.placements)

    def end(self, name: str) -> Placement:
        return self.placements.pop(name)

    def start(self, placement: Placement) -> None:
        self.placements[placement.name] = placement
        self.started.append(placement)

    def start_replay(self, placement: Placement) -> None:
        raise AssertionError("on a node that has left")

    def start_learners(self, placements: list[Placement]) -> None:
        raise AssertionError("on a node that has left")

    # the control server, and the view

    def send(self, name: str, message: Any) -> None:
        self.told.append((name, message))

    def event(self, *words: str) -> None:
        self.events.append(" ".join(words))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now_s=0.0)
    for module in ("generators", "recovery"):
        stand_in = SimpleNamespace(monotonic=lambda: clock.now_s)
        monkeypatch.setattr(f"asyncrl.supervise.{module}.time", stand_in)
    return clock


@pytest.fixture
def run() -> Any:
    return StandIn()


@pytest.fixture
def generators(run: Any) -> Generators:
    return Generators(run.run_plan, run, run, run, run)


def test_a_generator_without_room_waits_and_starts_under_its_name_when_a_node_joins(run, generators, clock):
    run.left.add(1)
    generators.handle_death("generator-1", DIED, stopping=False)
    assert [name for name, _ in run.told] == ["replay"]  # its prompts go to others at once
    clock.now_s = LONGEST_DELAY_S
    generators.restart_due()
    assert "generator-1 waits: node 1 has left the cluster, and a generator takes" in run.events[-1]
    run.nodes.append(ClusterNode("id-2", "10.0.0.2", Node(8, 1)))
    generators.restart_due()
    assert not run.started
    clock.now_s += LONGEST_DELAY_S
    generators.restart_due()
    assert [(placement.name, placement.node) for placement in run.started] == [("generator-1", 2)]
    assert run.events[-1] == "generator-1 starts on node 2: node 1 has left the cluster"


def test_a_generator_whose_node_is_there_starts_where_it_was(run, generators, clock):
    generators.handle_death("generator-1", DIED, stopping=False)
    clock.now_s = LONGEST_DELAY_S
    generators.restart_due()
    assert [(placement.name, placement.node) for placement in run.started] == [("generator-1", 1)]


@pytest.mark.parametrize("name", ["learner-0", "replay"])
def test_a_learner_or_replay_whose_node_has_left_ends_the_run_with_the_node(run, generators, clock, name):
    run.learners = ["learner-0"]
    recovery = Recovery(run.run_plan, run, run, generators, run, run)
    run.left.add(0)
    recovery.handle_death(name, DIED)
    clock.now_s = LONGEST_DELAY_S
    with pytest.raises(RoleDiedError, match=rf"{name} cannot be started again: node 0 \(10.0.0.0\) has left"):
        recovery.restart_due()
