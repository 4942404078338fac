"""Batches, and every wait of a learner, on real sockets: scripted generators and the real LearnerClient."""

import threading

import pytest
import zmq

from asyncrl.errors import DeadlineError, PublishError, RunStopping
from asyncrl.ledger.staleness_controller import WINDOW
from asyncrl.replay.learner_client import LearnerClient
from asyncrl.transport.messages.base import Ack
from asyncrl.transport.messages.learning import (
    BatchReply,
    BatchRequest,
    Newcomers,
    Published,
)
from asyncrl.transport.sockets import Network
from asyncrl.transport.wire import FRAMES_PER_GROUP, group_from_wire
from tests.support.replay import (
    PATIENCE_S,
    SOON_S,
    answer,
    generator,
    grants,
    learner,
    only_acks_come,
    serving,
)
from tests.support.wire import peer


def test_batches_come_in_admission_order_whatever_the_order_of_completion(served):
    with generator(served, credit=4) as dealer, learner(served) as client:
        client.published(0, PATIENCE_S)
        granted = grants(dealer, 4)
        assert [grant.index for grant in granted] == [0, 1, 2, 3]
        for grant in (granted[3], granted[0], granted[2], granted[1]):
            answer(dealer, grant)
        for step in range(2):
            reply, frames = client.batch(step, PATIENCE_S)
            assert [header.index for header in reply.headers] == [2 * step, 2 * step + 1]
            assert reply.next_step == step + 1
            groups = [
                group_from_wire(reply.headers[k], frames[FRAMES_PER_GROUP * k :][:FRAMES_PER_GROUP]) for k in range(2)
            ]
            assert [group.prompt_token_ids[2] for group in groups] == [2 * step, 2 * step + 1]
        assert reply.queue_depth == 0


def test_the_learners_effective_sample_sizes_open_admission_further(config):
    config.replay.max_staleness, config.replay.ess_target = 3, 0.9
    with serving(config) as served, generator(served, credit=100) as dealer, learner(served) as client:
        etas, size = [], None
        for step in range(WINDOW + 2):
            client.published(step, PATIENCE_S)
            for grant in grants(dealer, 2):
                answer(dealer, grant)
            reply, _ = client.batch(step, PATIENCE_S, size)
            etas.append(reply.eta)
            size = 0.99
        assert etas == [0] * (WINDOW + 1) + [1]
        assert len(grants(dealer, 2)) == 2  # of the next step, before its version is served
        assert only_acks_come(dealer)


def test_the_generators_are_listed_in_order_of_their_names(served):
    with generator(served, "generator-1"), generator(served, "generator-0"), learner(served) as client:
        members = client.wait_for_generators(2, PATIENCE_S)
    assert [(member.name, member.control_endpoint) for member in members] == [
        ("generator-0", "tcp://generator-0"),
        ("generator-1", "tcp://generator-1"),
    ]


def test_a_learner_at_another_step_than_the_ledger_ends_the_run(served):
    with peer("learner-0", served.endpoint) as dealer:
        dealer.send(BatchRequest(3))
        assert served.ended_with() == "the batch of step 3 is asked for; kept are none, and the next is 0"


def test_an_evaluation_that_nobody_waits_for_does_not_disturb_the_wait_for_a_batch(served):
    with generator(served, credit=5) as dealer, learner(served) as client:
        client.request_evaluation(0)
        held_out = grants(dealer, 3)
        client.published(0, PATIENCE_S)
        training = grants(dealer, 2)
        for grant in [*held_out, *training]:
            answer(dealer, grant)
        assert client.batch(0, PATIENCE_S)[0].step == 0


def test_a_batch_that_does_not_fill_is_a_deadline_error_that_names_it(served):
    with (
        learner(served) as client,
        pytest.raises(DeadlineError, match=r"the batch of step 0; replay .* should have come"),
    ):
        client.batch(0, SOON_S)


def test_an_evaluation_that_does_not_end_is_a_deadline_error_that_names_it(served):
    with generator(served), learner(served) as client:
        client.request_evaluation(7)
        with pytest.raises(DeadlineError, match="the evaluation of version 7"):
            client.wait_for_evaluation(7, SOON_S)


def test_generators_that_do_not_come_are_named_by_those_that_came(served):
    with generator(served), learner(served) as client:
        client.wait_for_generators(1, PATIENCE_S)
        with pytest.raises(DeadlineError, match=r"3 generators \(came: generator-0\)"):
            client.wait_for_generators(3, SOON_S)


def test_a_replay_that_is_not_there_is_a_deadline_error():
    with peer("nobody", "tcp://127.0.0.1:1") as nobody:
        endpoint = nobody.socket.getsockopt_string(zmq.LAST_ENDPOINT)
    client = LearnerClient("learner-0", Network(), endpoint, threading.Event())
    with pytest.raises(DeadlineError, match="take note of version 0"):
        client.published(0, SOON_S)
    client.close()


def test_a_wait_ends_with_what_its_caller_finds_wrong_meanwhile(served):
    def look() -> None:
        raise PublishError("generator-0 is gone")

    with learner(served) as client:
        client.while_waiting = look
        with pytest.raises(PublishError, match="generator-0 is gone"):
            client.batch(0, PATIENCE_S)


def test_waits_end_when_the_run_is_told_to_stop(served):
    stopping = threading.Event()
    client = LearnerClient("learner-0", Network(), served.endpoint, stopping)
    stopping.set()
    for wait in (
        lambda: client.batch(0, PATIENCE_S),
        lambda: client.wait_for_generators(1, PATIENCE_S),
        lambda: client.wait_for_evaluation(0, PATIENCE_S),
    ):
        with pytest.raises(RunStopping):
            wait()
    client.close()


def test_one_batch_request_is_answered_once_and_only_when_it_is_full(served):
    with generator(served, credit=2) as dealer, peer("learner-0", served.endpoint) as asker:
        asker.send(Published(0))
        assert isinstance(asker.next(), Ack)
        first, second = grants(dealer, 2)
        while not asker.hears_nothing():  # the generator may not have said yet that it serves
            assert isinstance(asker.next(), Newcomers)
        asker.send(BatchRequest(0))
        answer(dealer, first)
        assert asker.hears_nothing()
        answer(dealer, second)
        message, frames = asker.receive()
        assert isinstance(message, BatchReply)
        assert len(frames) == 2 * FRAMES_PER_GROUP
        assert asker.hears_nothing()
