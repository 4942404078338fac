"""Publishing one version from the learners to every generator, all or nothing.

    all ranks   gather ──┐
    rank 0               └─ transfer: to staging memory, while generators decode ─┐
    generators                                    switch: pause, take over, verify, version and salt, resume ─┐
    rank 0                                                    every generator has acknowledged: it is published ┘

Each generator makes its switch alone and whole, so a learner that dies, or another generator that fails, leaves it on
the old version or on the new one. Without staging (`publish.staged=false`) the transfer is inside the pause.

Consumes   whole tensors from `gather`.
Produces   version v, served by every generator.
Waits for  the rendezvous, each broadcast, each worker's report, each generator's switch: at most publish.timeout_s
           each; the error names the phase and who was late.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

import torch

from asyncrl.config.schema import PublishConfig
from asyncrl.errors import NotWholeError, PublishError
from asyncrl.publish.generator_commands import GeneratorCommands
from asyncrl.publish.sender import Sender
from asyncrl.transport.messages.learning import Member
from asyncrl.transport.sockets import Network

log = logging.getLogger(__name__)


class PublishSession:
    """Publishes to the generators of the moment.

    Args:
        members: those that serve now.
        config: with engine and transport resolved, see `Topology`.
        metas: Hugging Face name → meta tensor of the dtype that is sent.
    """

    def __init__(
        self,
        name: str,
        network: Network,
        members: list[Member],
        config: PublishConfig,
        metas: Mapping[str, torch.Tensor],
    ) -> None:
        assert "auto" not in (config.engine, config.transport), "a publish of an unresolved kind"
        self._name = name
        self._network = network
        self._config = config
        self._metas = metas
        self._version: int | None = None
        self._served: list[Member] = []
        self._tensors: dict[str, torch.Tensor] = {}
        self._num_groups = 0
        self._sender: Sender | None = None
        self._join(members)

    def send(self, version: int, tensors: dict[str, torch.Tensor]) -> dict[str, float]:
        """Every generator serves `version` when this returns. `time/publish_*_s` and the bytes that were received.

        `tensors` are kept for newcomers, until the next version.

        Raises:
            PublishError: a generator failed or was late. Each of the others serves `version` or what it served before,
                or stands still because it could do neither whole. `regroup`, then send again.
        """
        self._version, self._served, self._tensors = None, [], tensors
        start_s = time.perf_counter()
        figures = self._send(version)
        figures["time/publish_s"] = time.perf_counter() - start_s
        self._version, self._served = version, self._members
        return figures

    def take_back(self) -> dict[str, torch.Tensor]:
        """The tensors that `send` keeps, for the caller to write over. A newcomer then waits for the next `send`.

        Empty with deltas, which are made of them.
        """
        if self._config.engine == "delta":
            return {}
        self._version, tensors, self._tensors = None, self._tensors, {}
        return tensors

    def regroup(self, members: list[Member]) -> None:
        """Rebuilds the group for another set of generators; also the way on after a failed `send`.

        One that has left, or is dead, is forgotten. A newcomer (a new name, or a known one that was started again and
        so has another endpoint) first receives the version that the others serve, in a group of its own: they go on
        decoding. After a failed `send` there is no such version, and the next `send` brings it to all.

        Raises:
            PublishError: a member did not join, or a newcomer did not take the weights.
        """
        newcomers = [member for member in members if member not in self._served]
        self._leave()
        if newcomers and self._version is not None:
            self._join(newcomers)
            self._send(self._version)
            self._served = members
            self._leave()
        self._join(members)

    def close(self) -> None:
        self._leave()

    def _join(self, members: list[Member]) -> None:
        self._members = members
        self._commands = self._new_commands()
        self._sender = Sender(self._commands, self._network, self._config, self._metas)

    def _leave(self) -> None:
        if self._sender is not None:
            self._sender.shutdown()
            self._commands.close()
            self._sender = None

    def _new_commands(self) -> GeneratorCommands:
        """With a name of its own: what a generator answers to the commands of the one before reaches nobody."""
        self._num_groups += 1
        name = f"{self._name}-publish-{self._num_groups}"
        return GeneratorCommands(name, self._network, self._members, self._config.timeout_s)

    def _send(self, version: int) -> dict[str, float]:
        """Once more in full when all answer but something did not arrive, or is not held, as it was sent."""
        assert self._sender is not None, "the last publish failed; regroup first"
        try:
            try:
                return self._sender.send(version, self._tensors)
            except NotWholeError as error:
                log.warning("publishing version %d once more: %s", version, error)
                return self._sender.send(version, self._tensors)
        except PublishError as error:
            late = self._break_up()
            raise PublishError(f"{error}; {' and '.join(late)} did not answer then" if late else str(error)) from error

    def _break_up(self) -> list[str]:
        """Frees every generator from the group at once, instead of at its deadlines. Returns those that do not answer.

        The commands of the group are left to their thread, which may still wait on their sockets.
        """
        assert self._sender is not None
        self._sender.shutdown()
        self._sender = None
        commands = self._new_commands()
        late = commands.leave()
        commands.close()
        return late
