"""A generator or a learner rank of a selftest as a Ray actor, set up as a run's roles are."""

from __future__ import annotations

from typing import Any

from asyncrl.cluster.role_actor import RoleActor
from asyncrl.cluster.roles import RunPlan
from asyncrl.cluster.topology import Placement
from asyncrl.transport.sockets import Network


class SelftestActor(RoleActor):
    """Answers `call` instead of running its role."""

    def __init__(self, plan: RunPlan, placement: Placement, network: Network) -> None:
        super().__init__(plan, placement, network)
        if self._problem is not None:
            return
        arguments = (placement.name, plan.config, plan.topology.device == "cpu", self._network)
        if placement.role == "learner":
            from asyncrl.selftest.learner import LearnerRank

            self._part: Any = LearnerRank(*arguments)
        else:
            from asyncrl.selftest.generator import Generator

            self._part = Generator(*arguments)

    def call(self, method: str, *args: Any) -> Any:
        """A method of the part.

        Raises:
            ConfigError: this node lacks something.
        """
        self._raise_problem()
        return getattr(self._part, method)(*args)
