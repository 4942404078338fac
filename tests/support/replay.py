"""A real ReplayServer in a thread, scripted generators and the real LearnerClient on real sockets."""

import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import zmq

from asyncrl.config.schema import Config
from asyncrl.errors import RunError
from asyncrl.ledger.ledger import Ledger
from asyncrl.ledger.staleness_controller import StalenessController
from asyncrl.ledger.store import LedgerStore
from asyncrl.replay.evaluation import Evaluation, first_lease_id
from asyncrl.replay.learner_client import LearnerClient
from asyncrl.replay.server import ReplayServer
from asyncrl.transport.control_link import ControlLink
from asyncrl.transport.control_server import ControlServer
from asyncrl.transport.messages.base import Ack
from asyncrl.transport.messages.rollouts import GroupDone, Hello, LeaseGrant, Serving
from asyncrl.transport.sockets import Network, bind
from asyncrl.transport.wire import group_to_wire
from asyncrl.types import Prompt
from tests.support.wire import Peer, bind_again, make_group, peer

SOON_S = 0.2
PATIENCE_S = 20.0
HELD_OUT = [Prompt(row, [9, row], f"held out {row}", str(row)) for row in range(3)]


def small_config() -> Config:
    config = Config()
    config.learner.batch_size = 2
    config.algorithm.group_size = 2
    config.replay.max_staleness = 1
    config.replay.max_lease_attempts = 2
    config.run.eval_samples = 2
    return config


def training_prompt(index: int) -> Prompt:
    return Prompt(row=100 + index, token_ids=[5, 6, index], text=f"prompt {index}", answer=str(index))


class Served:
    """A running ReplayServer and its launcher.

    Args:
        path: of the ledger; where another server has left one, this one takes its place.
        port: 0 = any.
    """

    def __init__(self, config: Config, network: Network, path: Path, port: int = 0) -> None:
        self.network = network
        store = LedgerStore(path, "full")
        session = store.begin_session(began_anew=False)
        self.control = ControlServer(Network(), ["replay"])
        self.link = ControlLink("replay", Network(), self.control.endpoint, 600.0, 600.0)
        context: zmq.Context = zmq.Context.instance()
        self.socket, self.endpoint = bind_again(context, network, port) if port else bind(context, network)
        ledger = Ledger(
            batch_size=config.learner.batch_size,
            max_staleness=config.replay.max_staleness,
            num_steps=10,
            stragglers=config.replay.stragglers,
            lease_timeout_s=config.replay.lease_timeout_s,
            max_attempts=config.replay.max_lease_attempts,
            max_refill_prompts=4 if config.algorithm.zero_variance == "refill" else 0,
            snapshot=store.snapshot(),
            now_s=time.monotonic(),
        )
        evaluation = Evaluation(HELD_OUT, config, first_lease_id(session))
        replay, controller = config.replay, None
        if replay.ess_target is not None:
            controller = StalenessController(
                ess_target=replay.ess_target, min_staleness=0, max_staleness=replay.max_staleness
            )
        self.server = ReplayServer(
            self.socket, config, training_prompt, evaluation, ledger, store, self.link, controller
        )
        self.error: RunError | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.server.run()
        except RunError as error:
            self.error = error

    def ended_with(self) -> str:
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive()
        return str(self.error)

    def reports(self, kind: type, number: int = 1) -> list:
        """The first so many reports of a kind that the launcher hears."""
        found: list = []
        for _ in range(100):
            found += [report for _, report in self.control.receive(200) if isinstance(report, kind)]
            if len(found) >= number:
                return found
        raise AssertionError(f"no {kind.__name__} came")

    def close(self) -> None:
        self.link.stopping.set()
        self.thread.join(PATIENCE_S)
        self.link.close()
        self.control.close()
        self.socket.close(0)


@contextmanager
def serving(config: Config, network: Network | None = None) -> Iterator[Served]:
    with tempfile.TemporaryDirectory() as folder:
        served = Served(config, network or Network(), Path(folder) / "ledger.sqlite")
        try:
            yield served
        finally:
            served.close()


@contextmanager
def generator(served: Served, name: str = "generator-0", credit: int = 2) -> Iterator[Peer]:
    with peer(name, served.endpoint, served.network) as dealer:
        dealer.send(Hello(f"tcp://{name}", 1, credit))
        dealer.send(Serving())
        yield dealer


@contextmanager
def learner(served: Served) -> Iterator[LearnerClient]:
    client = LearnerClient("learner-0", served.network, served.endpoint, threading.Event())
    try:
        yield client
    finally:
        client.close()


def grants(dealer: Peer, number: int) -> list[LeaseGrant]:
    """The next so many grants, Acks passed over."""
    found: list[LeaseGrant] = []
    while len(found) < number:
        message = dealer.next()
        if isinstance(message, LeaseGrant):
            found.append(message)
        else:
            assert isinstance(message, Ack)
    return found


def group_done(grant: LeaseGrant, version: int = 0, rewards: tuple[float, ...] = (1.0, 0.0)) -> tuple[GroupDone, list]:
    header, frames = group_to_wire(make_group(grant.index, version, rewards, grant.row))
    return GroupDone(grant.lease_id, header), frames


def answer(dealer: Peer, grant: LeaseGrant, version: int = 0, rewards: tuple[float, ...] = (1.0, 0.0)) -> None:
    dealer.send(*group_done(grant, version, rewards))


def only_acks_come(dealer: Peer) -> bool:
    """No grant within the time in which one would have come."""
    while not dealer.hears_nothing():
        if not isinstance(dealer.next(), Ack):
            return False
    return True
