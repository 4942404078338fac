"""What the server lets in, on real sockets: scripted generators and the real LearnerClient."""

import pytest

from asyncrl.transport import sockets
from asyncrl.transport.messages.learning import (
    BatchRequest,
    EvalRequest,
    Members,
    MembersRequest,
    Published,
)
from asyncrl.transport.messages.publishing import Stage
from asyncrl.transport.messages.rollouts import LeaseFailed
from asyncrl.transport.messages.schema import AnyMessage
from asyncrl.transport.messages.supervision import Stop
from asyncrl.transport.sockets import Keys, Network
from asyncrl.transport.wire import encode
from tests.support.replay import (
    PATIENCE_S,
    answer,
    generator,
    grants,
    group_done,
    learner,
    serving,
)
from tests.support.wire import peer


def test_malformed_foreign_and_misplaced_messages_do_not_disturb(served):
    others = peer("stranger", served.endpoint)
    with generator(served, credit=2) as dealer, others as stranger, learner(served) as client:
        client.published(0, PATIENCE_S)
        first, second = grants(dealer, 2)
        whole = bytes(encode(Published(9))[0])
        for length in range(len(whole)):
            stranger.send_raw(whole[:length])
        stranger.send_raw(b"\xff" * 1000, b"x")
        misplaced: list[AnyMessage] = [Stage(), Stop("now"), Members([], 0), first]
        for message in misplaced:
            stranger.send(message)
        stranger.send(*group_done(first))
        stranger.send(LeaseFailed(second.lease_id, "not mine"))
        stranger.send(LeaseFailed(77, "never granted"))
        for message in (Published(9), BatchRequest(0), EvalRequest(0)):  # a generator is no learner
            dealer.send(message)
        assert stranger.hears_nothing()
        answer(dealer, first)
        answer(dealer, second)
        reply, _ = client.batch(0, PATIENCE_S)
        assert [header.index for header in reply.headers] == [0, 1]


def test_a_frame_over_the_limit_cuts_off_its_sender_alone(config, monkeypatch):
    monkeypatch.setattr(sockets, "MAX_FRAME_BYTES", 10_000)
    with serving(config) as served, peer("stranger", served.endpoint) as stranger, generator(served) as dealer:
        stranger.send_raw(b"x" * 20_000)
        with learner(served) as client:
            client.published(0, PATIENCE_S)
            assert len(grants(dealer, 2)) == 2


def test_with_keys_only_peers_of_this_run_get_through(config):
    keys = Keys.generate()
    with serving(config, Network(keys=keys)) as served:
        for network in (Network(), Network(keys=Keys.generate())):
            with peer("learner-0", served.endpoint, network) as stranger:
                stranger.send(MembersRequest())
                assert stranger.hears_nothing()
        for _ in range(100):
            served.control.receive(200)
            if served.control.roles["replay"].metrics.get("queue/peers_refused", 0) >= 2:
                break
        else:
            raise AssertionError("the refusals were not counted")
        with generator(served), learner(served) as client:
            assert [member.name for member in client.wait_for_generators(1, PATIENCE_S)] == ["generator-0"]


def test_without_keys_no_socket_leaves_loopback():
    with pytest.raises(AssertionError, match="needs keys"):
        Network(host="10.0.0.1")
