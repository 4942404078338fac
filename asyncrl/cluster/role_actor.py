"""One Ray actor a role: Ray places and starts the process, then it runs one method until the role ends."""

from __future__ import annotations

import logging
import os
import pickle
import sys
import time

import zmq

from asyncrl.cluster.child_reaper import watch_over_this_process
from asyncrl.cluster.interfaces import group_variables, network_here
from asyncrl.cluster.roles import RunPlan, load_role, run_generator, run_learner, run_replay
from asyncrl.cluster.topology import Placement
from asyncrl.errors import ConfigError, RunError
from asyncrl.run.directory import PROCESS_LINE, keep_private, log_file
from asyncrl.run.lock import share_lock
from asyncrl.transport.control_link import ControlLink
from asyncrl.transport.sockets import Network, bind

REBIND_TIMEOUT_S = 20.0
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class RoleActor:
    """A role's process.

    Args:
        network: with the address of the node that Ray chose.
    """

    def __init__(self, plan: RunPlan, placement: Placement, network: Network) -> None:
        self._plan = plan
        self._placement = placement
        self._network = network
        self._socket: zmq.Socket | None = None
        self._problem: ConfigError | None = None
        """Ray does not hand on what a constructor raises, so the methods do."""
        self._link: ControlLink | None = None
        keep_private()
        watch_over_this_process()
        try:
            self._network = network_here(network, plan.config.cluster.interface)
            os.environ.update(group_variables(self._network.host))
        except ConfigError as error:
            self._problem = error
            return
        share_lock(plan.run_dir)
        _write_output_to(plan, placement.name)
        logging.info("%s %s %d", placement.name, PROCESS_LINE, os.getpid())

    def load(self) -> None:
        """Imports what the role needs. May be called before `run`, while the address of replay is not known yet.

        Raises:
            ConfigError: this node lacks something, or the engine cannot be imported.
        """
        self._raise_problem()
        if self._link is None:
            self._link = self._plan.link(self._placement.name, self._network)
            load_role(self._placement.role, self._plan.config, self._link)

    def bind_replay(self) -> str:
        """Binds the replay server and returns its endpoint.

        Raises:
            ConfigError: replay.port is in use, or this node lacks something.
        """
        self._raise_problem()
        context: zmq.Context = zmq.Context.instance()
        self._socket, endpoint = bind(context, self._network, self._plan.config.replay.port)
        return endpoint

    def _bind_again(self, replay_endpoint: str) -> zmq.Socket:
        """Binds the address of the previous replay process, which may take a moment to release it."""
        context: zmq.Context = zmq.Context.instance()
        deadline_s = time.monotonic() + REBIND_TIMEOUT_S
        while True:
            try:
                return bind(context, self._network, int(replay_endpoint.rpartition(":")[2]))[0]
            except ConfigError:
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(0.1)

    def run(self, replay_endpoint: str, rendezvous: str, num_restarts: int) -> None:
        """Until the role ends; an error is logged here and raised to the launcher.

        Args:
            num_restarts: how many processes of this role have died in this run.
        """
        self._raise_problem()
        try:
            self._run(replay_endpoint, rendezvous, num_restarts)
        except BaseException as error:
            logging.exception("%s failed", self._placement.name)
            if can_travel(error):
                raise
            raise RunError(f"{type(error).__name__}: {error}") from None

    def _raise_problem(self) -> None:
        if self._problem is not None:
            raise self._problem

    def _run(self, replay_endpoint: str, rendezvous: str, num_restarts: int) -> None:
        self.load()
        plan, network, link = self._plan, self._network, self._link
        assert link is not None
        match self._placement.role:
            case "replay":
                socket = self._socket or self._bind_again(replay_endpoint)
                run_replay(plan, link, socket, num_restarts)
            case "generator":
                run_generator(plan, network, link, replay_endpoint)
            case "learner":
                run_learner(plan, network, link, self._placement.rank, rendezvous, replay_endpoint, num_restarts)


def can_travel(error: BaseException) -> bool:
    """Whether Ray can carry it to the launcher. Some errors hold what cannot be pickled, and their message is lost."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - whatever an error's own state raises here
        return False
    return True


def _write_output_to(plan: RunPlan, name: str) -> None:
    """Sends everything this process and its children print to the role's log file."""
    path = log_file(plan.run_dir, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(descriptor, sys.stdout.fileno())
    os.dup2(descriptor, sys.stderr.fileno())
    os.close(descriptor)
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT, stream=sys.stderr, force=True)
