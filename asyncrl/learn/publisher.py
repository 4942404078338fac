"""Learner rank 0's way to the generators: a publish group that follows who is there. Runs in `publish_thread.py`.

Consumes   whole tensors of each version; from replay, which generators are up.
Produces   the version in every generator that is up, and replay's note of it.
Waits for  each phase of a publish (publish.timeout_s); after one that failed, for the death that explains it
           (run.heartbeat_timeout_s and a little); for one generator at least (run.startup_timeout_s).
Unblocked  by generators, and by the launcher, which tells replay of their deaths and starts them again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch

from asyncrl.config.schema import Config
from asyncrl.errors import DeadlineError, PublishError, RunStopping
from asyncrl.publish.session import PublishSession
from asyncrl.replay.learner_client import LearnerClient
from asyncrl.transport.control_link import ControlLink
from asyncrl.transport.messages.learning import Member
from asyncrl.transport.sockets import Network

POLL_S = 0.25
DEATH_MARGIN_S = 10.0
"""The launcher takes this much longer than run.heartbeat_timeout_s, at most, to find that a generator is dead."""


class Publisher:
    """Sends versions; leaves out generators that have died, and lets those in that are new.

    Args:
        replay: this thread's own.
        metas: as PublishSession takes them.
    """

    def __init__(
        self,
        config: Config,
        network: Network,
        replay: LearnerClient,
        link: ControlLink,
        metas: Mapping[str, torch.Tensor],
    ) -> None:
        self._config = config
        self._network = network
        self._replay = replay
        self._link = link
        self._metas = metas
        self._session: PublishSession | None = None
        self._members: list[Member] = []
        """Of the present group; empty when there is none that works."""
        self.phase = ""
        """What is being done, for people; empty when nothing is."""

    def publish(self, version: int, tensors: dict[str, torch.Tensor], evaluate: bool) -> dict[str, float]:
        """Brings `version` into every generator that is up and tells replay; when one dies meanwhile, in another go.

        Args:
            evaluate: asks for its evaluation then.

        Returns:
            The figures of `PublishSession.send`.

        Raises:
            PublishError, RuntimeError: it failed though no generator has died.
            DeadlineError: no generator is up, and none came.
            RunStopping: the run was told to stop meanwhile.
        """
        figures = self._send(version, tensors)
        self._link.progress()
        self._replay.published(version, self._config.publish.timeout_s)
        if evaluate:
            self._replay.request_evaluation(version)
        self.phase = ""
        return figures

    def take_back(self) -> dict[str, torch.Tensor]:
        """See `PublishSession.take_back`."""
        return self._session.take_back() if self._session is not None else {}

    def close(self) -> None:
        if self._session is not None:
            self._session.close()
        self._replay.close()

    def _send(self, version: int, tensors: dict[str, torch.Tensor]) -> dict[str, float]:
        members = self._present()
        while True:
            self.phase = f"publishing version {version}"
            try:
                self._regroup(members)
                assert self._session is not None
                return self._session.send(version, tensors)
            except (PublishError, RuntimeError) as error:  # gloo and NCCL raise RuntimeErrors when a peer is gone
                self._members = []
                members = self._present_after(members, error)
                self._link.note(f"version {version} goes again to {_names(members)}: {_first_line(error)}")

    def _regroup(self, members: list[Member]) -> None:
        """The group of these generators; newcomers among them get the version that the others serve."""
        if members == self._members:
            return
        self.phase = f"joining the publish group of {_names(members)}"
        self._members = []
        if self._session is None:
            self._session = PublishSession(self._link.name, self._network, members, self._config.publish, self._metas)
        else:
            self._session.regroup(members)
        self._members = members

    def welcome_newcomers(self) -> None:
        """Between two publishes: who has come up since the last one serves what the others serve.

        Raises:
            RunStopping: the run was told to stop meanwhile.
        """
        if self._session is None or not self._replay.newcomers_wait():
            return
        members = self._replay.members(self._config.publish.timeout_s).members
        if not members or members == self._members:
            return
        try:
            self._regroup(members)
            self._link.progress()
        except (PublishError, RuntimeError) as error:
            # One of them has died, and when it is back it is announced again; or the next publish meets the error.
            self._link.note(f"the publish group of {_names(members)} did not come about: {_first_line(error)}")
        self.phase = ""

    def _present(self) -> list[Member]:
        """The generators that are up: one at least."""
        timeout_s = self._config.run.startup_timeout_s
        deadline_s = time.monotonic() + timeout_s
        while not (members := self._replay.members(self._config.publish.timeout_s).members):
            self.phase = "waiting for a generator: none is up"
            if time.monotonic() > deadline_s:
                raise DeadlineError("a generator to come back", timeout_s, "the launcher, which starts it again")
            self._pause()
        return members

    def _present_after(self, failed: list[Member], error: Exception) -> list[Member]:
        """The generators that are up, once that is known to be others than the publish failed with; else its error."""
        deadline_s = time.monotonic() + self._config.run.heartbeat_timeout_s + DEATH_MARGIN_S
        self.phase = "waiting to hear which generator died in the publish"
        while (members := self._present()) == failed:
            if time.monotonic() > deadline_s:
                raise error
            self._pause()
        return members

    def _pause(self) -> None:
        if self._link.stopping.wait(POLL_S):
            raise RunStopping


def _names(members: list[Member]) -> str:
    return ", ".join(member.name for member in members)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
