"""The real ReplayServer in a thread; scripted generators and the real ReplayClient on real sockets."""

import math
import threading
from collections.abc import Iterator

import msgspec
import pytest
import zmq

from asyncrl.config.schema import Config
from asyncrl.errors import DeadlineError, PublishError, RunStopping
from asyncrl.ledger.staleness_controller import WINDOW
from asyncrl.replay import server as server_module
from asyncrl.replay.client import ReplayClient
from asyncrl.transport import sockets
from asyncrl.transport.messages.learning import (
    BatchReply,
    BatchRequest,
    EvalRequest,
    Members,
    MembersRequest,
    Newcomers,
    Published,
)
from asyncrl.transport.messages.publishing import Stage
from asyncrl.transport.messages.rollouts import Ack, Hello, LeaseFailed, Serving
from asyncrl.transport.messages.scaling import Drain, Drained, Gone
from asyncrl.transport.messages.schema import AnyMessage
from asyncrl.transport.messages.supervision import EvalRow, Note, Stop
from asyncrl.transport.sockets import Keys, Network
from asyncrl.transport.wire import encode, group_from_wire
from tests.support.replay import (
    PATIENCE_S,
    SOON_S,
    Served,
    answer,
    generator,
    grants,
    group_done,
    learner,
    only_acks_come,
    serving,
    small_config,
)
from tests.support.wire import peer


@pytest.fixture
def config() -> Config:
    return small_config()


@pytest.fixture
def served(config: Config) -> Iterator[Served]:
    with serving(config) as running:
        yield running


# ── training ──


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
            groups = [group_from_wire(reply.headers[k], frames[4 * k : 4 * k + 4]) for k in range(2)]
            assert [group.prompt_token_ids[2] for group in groups] == [2 * step, 2 * step + 1]
        assert reply.queue_depth == 0


def test_a_grant_carries_the_prompt_and_how_to_sample_it(served, config):
    with generator(served) as dealer, learner(served) as client:
        client.published(0, PATIENCE_S)
        first, second = grants(dealer, 2)
    assert (first.kind, first.row, first.token_ids, first.text, first.answer) == (
        "train",
        100,
        [5, 6, 0],
        "prompt 0",
        "0",
    )
    assert (first.num_samples, first.temperature, first.timeout_s) == (2, 1.0, config.replay.lease_timeout_s)
    assert first.seed != second.seed


def test_nothing_is_granted_before_the_first_version_is_published(served):
    with generator(served) as dealer, learner(served) as client:
        assert dealer.hears_nothing()
        client.published(0, PATIENCE_S)
        assert grants(dealer, 1)[0].index == 0


def test_admission_waits_for_the_next_version(served):
    with generator(served, credit=100) as dealer, learner(served) as client:
        client.published(0, PATIENCE_S)
        assert [grant.index for grant in grants(dealer, 4)] == [0, 1, 2, 3]
        assert dealer.hears_nothing()
        client.published(1, PATIENCE_S)
        assert [grant.index for grant in grants(dealer, 2)] == [4, 5]
        assert dealer.hears_nothing()


def test_groups_of_equal_rewards_are_replaced_until_the_step_has_looked_through_enough_prompts(config):
    config.algorithm.zero_variance, config.replay.max_staleness = "refill", 0
    rewards = [(1.0, 1.0), (1.0, 0.0), (0.0, 0.0), (math.nan, 0.5), (1.0, 1.0)]
    with serving(config) as served, generator(served, credit=100) as dealer, learner(served) as client:
        client.published(0, PATIENCE_S)
        for _ in rewards:
            (grant,) = grants(dealer, 1)
            answer(dealer, grant, rewards=rewards[grant.index])
        reply, _ = client.batch(0, PATIENCE_S)
        assert [header.index for header in reply.headers] == [1, 4]
        assert "prompt 4 (row 104) has equal rewards and yet a place in a batch" in served.reports(Note)[0].text


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


def test_a_generator_never_holds_more_leases_than_its_credit(served):
    with generator(served, credit=2) as dealer, learner(served) as client:
        client.published(0, PATIENCE_S)
        first, _ = grants(dealer, 2)
        assert dealer.hears_nothing()
        for _ in range(3):  # sent thrice, it counts once
            answer(dealer, first)
        grants(dealer, 1)
        assert only_acks_come(dealer)


def test_the_generator_with_more_free_credit_is_served_first(served):
    small, large = generator(served, "generator-0", 1), generator(served, "generator-1", 3)
    with small as first, large as second, learner(served) as client:
        client.wait_for_generators(2, PATIENCE_S)
        client.published(0, PATIENCE_S)
        assert [grant.index for grant in grants(second, 3)][:2] == [0, 1]
        assert len(grants(first, 1)) == 1


def test_the_generators_are_listed_in_order_of_their_names(served):
    with generator(served, "generator-1"), generator(served, "generator-0"), learner(served) as client:
        members = client.wait_for_generators(2, PATIENCE_S)
    assert [(member.name, member.control_endpoint) for member in members] == [
        ("generator-0", "tcp://generator-0"),
        ("generator-1", "tcp://generator-1"),
    ]


# ── leases that do not end well ──


def test_a_lease_that_expires_goes_to_another_generator_and_a_late_answer_still_counts(config, monkeypatch):
    monkeypatch.setattr(server_module, "SWEEP_INTERVAL_S", 0.05)
    config.replay.lease_timeout_s = SOON_S
    config.replay.max_lease_attempts = 100
    with serving(config) as served, generator(served, "generator-0", 1) as slow, learner(served) as client:
        client.published(0, PATIENCE_S)
        (first,) = grants(slow, 1)
        served.reports(Note)
        with generator(served, "generator-1", 1) as other:
            again = grants(other, 1)[0]
            assert again.index == first.index
            answer(slow, first)
            answer(other, again)
            for dealer in (slow, other):
                assert isinstance(dealer.next(), Ack)


def test_a_generator_that_says_hello_again_has_lost_its_leases_and_another_gets_them(served):
    with generator(served, "generator-0", 2) as dealer, learner(served) as client:
        client.published(0, PATIENCE_S)
        lost = grants(dealer, 2)
        with generator(served, "generator-1", 4) as other:
            assert [grant.index for grant in grants(other, 2)] == [2, 3]
            dealer.send(Hello("tcp://generator-0", 1, 0))
            assert [grant.index for grant in grants(other, 2)] == [grant.index for grant in lost]
            answer(dealer, lost[0])  # of the process before: refused
            assert dealer.hears_nothing()
        assert "said hello again without 2 of its prompts" in served.reports(Note)[0].text


def test_a_prompt_that_keeps_failing_is_retried_then_quarantined_and_over_the_limit_ends_the_run(config):
    config.replay.max_quarantined = 1
    with serving(config) as served, generator(served, credit=1) as dealer, learner(served) as client:
        client.published(0, PATIENCE_S)
        for expected in (0, 0, 1, 1):
            (grant,) = grants(dealer, 1)
            assert grant.index == expected
            dealer.send(LeaseFailed(grant.lease_id, "poison"))
        texts = [note.text for note in served.reports(Note, number=4)]
        assert texts == [
            f"prompt {i} (row 10{i}) {o}: generator-0: poison" for i in (0, 1) for o in ("retried", "quarantined")
        ]
        assert (
            served.ended_with()
            == "2 prompts are quarantined, replay.max_quarantined=1; the last, row 101: generator-0: poison"
        )


def test_a_quarantined_prompt_is_replaced_in_the_batch(served):
    with generator(served, credit=1) as dealer, learner(served) as client:
        client.published(0, PATIENCE_S)
        for _ in range(2):
            dealer.send(LeaseFailed(grants(dealer, 1)[0].lease_id, "poison"))
        for _ in range(2):
            answer(dealer, grants(dealer, 1)[0])
        reply, _ = client.batch(0, PATIENCE_S)
        assert [header.index for header in reply.headers] == [1, 2]


def test_more_unscored_completions_than_allowed_end_the_run(config):
    config.reward.max_failures = 2
    with serving(config) as served, generator(served, credit=1) as dealer, learner(served) as client:
        client.published(0, PATIENCE_S)
        answer(dealer, grants(dealer, 1)[0], rewards=(math.nan, math.nan))
        answer(dealer, grants(dealer, 1)[0], rewards=(math.nan, 1.0))
        assert "failed on 3 completions, reward.max_failures=2; the last for row 101" in served.ended_with()


def test_a_group_that_contradicts_its_lease_is_a_failed_lease(served):
    with generator(served, credit=1) as dealer, learner(served) as client:
        client.published(0, PATIENCE_S)
        (grant,) = grants(dealer, 1)
        message, frames = group_done(grant)
        dealer.send(message, [frames[0][:4], *frames[1:]])
        (again,) = grants(dealer, 1)
        assert again.index == 0
        dealer.send(*group_done(msgspec.structs.replace(again, index=3)))  # another prompt's group
        assert grants(dealer, 1)[0].index == 1
        assert "is for prompt 0, the group is of prompt 3" in served.reports(Note, number=2)[1].text


# ── messages that should not have come ──


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


def test_a_group_of_another_size_is_a_failed_lease_that_names_it(served):
    with generator(served, credit=1) as dealer, learner(served) as client:
        client.published(0, PATIENCE_S)
        (grant,) = grants(dealer, 1)
        answer(dealer, grant, rewards=(1.0, 0.0, 1.0))
        assert grants(dealer, 1)[0].index == grant.index
        text = served.reports(Note)[0].text
    assert text == "prompt 0 (row 100) retried: generator-0: group 0: 3 completions, algorithm.group_size=2"


def test_a_frame_over_the_limit_cuts_off_its_sender_alone(config, monkeypatch):
    monkeypatch.setattr(sockets, "MAX_FRAME_BYTES", 10_000)
    with serving(config) as served, peer("stranger", served.endpoint) as stranger, generator(served) as dealer:
        stranger.send_raw(b"x" * 20_000)
        with learner(served) as client:
            client.published(0, PATIENCE_S)
            assert len(grants(dealer, 2)) == 2


def test_a_learner_at_another_step_than_the_ledger_ends_the_run(served):
    with peer("learner-0", served.endpoint) as dealer:
        dealer.send(BatchRequest(3))
        assert served.ended_with() == "the batch of step 3 is asked for; kept are none, and the next is 0"


# ── evaluation ──


def test_an_evaluation_counts_every_held_out_prompt_once(served):
    with generator(served, credit=3) as dealer, learner(served) as client:
        client.request_evaluation(0)
        granted = grants(dealer, 3)
        assert [(grant.kind, grant.row, grant.temperature) for grant in granted] == [("eval", r, 0.0) for r in range(3)]
        rewards = [(1.0, 0.0), (0.0, math.nan), (1.0, 1.0)]
        for grant, pair in zip(granted, rewards, strict=True):
            answer(dealer, grant, version=grant.row // 2, rewards=pair)
        reply = client.wait_for_evaluation(0, PATIENCE_S)
        assert reply.metrics == {
            "eval/accuracy": 3 / 6,
            "eval/reward_mean": 3 / 5,
            "eval/length_mean": 1.5,
            "eval/num_prompts": 3,
            "eval/num_failed": 0,
            "eval/version": 0,
            "eval/num_versions": 2,
            "eval/pass@2": 2 / 3,
        }
        assert reply.sample_text == "answer 0"
        assert served.reports(EvalRow)[0].metrics["eval/accuracy"] == 0.5


def test_a_held_out_prompt_that_keeps_failing_is_given_up_and_counted(served):
    with generator(served, credit=1) as dealer, learner(served) as client:
        client.request_evaluation(4)
        for _ in range(4):
            (grant,) = grants(dealer, 1)
            if grant.row == 1:
                dealer.send(LeaseFailed(grant.lease_id, "no luck"))
            else:
                answer(dealer, grant, version=4)
        metrics = client.wait_for_evaluation(4, PATIENCE_S).metrics
        assert (metrics["eval/num_failed"], metrics["eval/num_prompts"], metrics["eval/accuracy"]) == (1, 2, 0.5)


def test_held_out_prompts_of_a_generator_that_came_back_are_asked_again(served):
    with generator(served, credit=3) as dealer, learner(served) as client:
        client.request_evaluation(0)
        grants(dealer, 3)
        dealer.send(Hello("tcp://generator-0", 1, 3))
        dealer.send(Serving())
        for grant in grants(dealer, 3):
            answer(dealer, grant)
        assert client.wait_for_evaluation(0, PATIENCE_S).metrics["eval/num_prompts"] == 3


def test_an_evaluation_that_is_overtaken_is_dropped_with_a_note_and_its_answers_do_not_count(served):
    with generator(served, credit=3) as dealer, learner(served) as client:
        client.request_evaluation(1)
        old = grants(dealer, 3)
        client.request_evaluation(2)
        assert "dropped the evaluation of version 1" in served.reports(Note)[0].text
        for grant in old:
            answer(dealer, grant, rewards=(0.0, 0.0))
        for grant in grants(dealer, 3):
            answer(dealer, grant, rewards=(1.0, 1.0))
        reply = client.wait_for_evaluation(2, PATIENCE_S)
        assert (reply.version, reply.metrics["eval/accuracy"]) == (2, 1.0)


def test_an_evaluation_that_nobody_waits_for_does_not_disturb_the_wait_for_a_batch(served):
    with generator(served, credit=5) as dealer, learner(served) as client:
        client.request_evaluation(0)
        held_out = grants(dealer, 3)
        client.published(0, PATIENCE_S)
        training = grants(dealer, 2)
        for grant in [*held_out, *training]:
            answer(dealer, grant)
        assert client.batch(0, PATIENCE_S)[0].step == 0


# ── the client's waits ──


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
    client = ReplayClient("learner-0", Network(), endpoint, threading.Event())
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
    client = ReplayClient("learner-0", Network(), served.endpoint, stopping)
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
        assert len(frames) == 8
        assert asker.hears_nothing()


# ── generators that come and go ──


def test_the_prompts_of_a_dead_generator_go_to_another_at_once_and_what_it_sent_late_is_refused(served, config):
    config.replay.lease_timeout_s = 600.0
    with generator(served, "generator-0", 2) as dead, learner(served) as client:
        client.published(0, PATIENCE_S)
        lost = grants(dead, 2)
        with generator(served, "generator-1", 4) as other:
            grants(other, 2)
            served.control.tell("replay", Gone("generator-0", "failed: its process died"))
            assert [grant.index for grant in grants(other, 2)] == [grant.index for grant in lost]
            assert [member.name for member in client.members(PATIENCE_S).members] == ["generator-1"]
            answer(dead, lost[0])
            assert dead.hears_nothing()
    assert [note.text for note in served.reports(Note)] == ["2 prompts of generator-0 go to the next free generator"]


def test_a_prompt_that_took_its_generators_down_is_quarantined_with_the_reason(served):
    with learner(served) as client:
        for life in range(2):  # replay.max_lease_attempts=2
            with generator(served, credit=1) as dealer:
                client.members(PATIENCE_S)
                client.published(0, PATIENCE_S)
                assert grants(dealer, 1)[0].index == 0
            served.control.tell("replay", Gone("generator-0", f"failed: death {life}"))
            notes = served.reports(Note, number=1 + life)
        with generator(served, credit=1) as dealer:
            assert grants(dealer, 1)[0].index == 1
    assert notes[-1].text == "prompt 0 (row 100) quarantined: generator-0 failed: death 1"


def test_a_newcomer_is_announced_to_who_publishes_and_gets_leases_once_it_serves(served):
    with generator(served, "generator-0", 1) as first, learner(served) as client:
        client.published(0, PATIENCE_S)
        grants(first, 1)
        client.newcomers_wait()  # the first one may have said that it serves only after the publish
        assert not client.newcomers_wait()
        with peer("generator-1", served.endpoint) as newcomer:
            newcomer.send(Hello("tcp://generator-1", 1, 3))
            assert newcomer.hears_nothing()
            assert client.newcomers_wait()
            assert not client.newcomers_wait()
            assert [member.name for member in client.members(PATIENCE_S).members] == ["generator-0", "generator-1"]
            newcomer.send(Serving())
            assert len(grants(newcomer, 3)) == 3


def test_a_generator_that_leaves_gets_no_more_leases_and_goes_when_it_has_none_and_a_publish_went_without_it(served):
    with generator(served, "generator-0", 2) as leaver, learner(served) as client:
        client.published(0, PATIENCE_S)
        first, second = grants(leaver, 2)
        served.control.tell("replay", Drain("generator-0"))
        while client.members(PATIENCE_S).members:
            pass
        answer(leaver, first)
        answer(leaver, second)
        assert only_acks_come(leaver)
        assert not [report for _, report in served.control.receive(0) if isinstance(report, Drained)]
        client.published(0, PATIENCE_S)
        assert served.reports(Drained) == [Drained("generator-0")]
        reply, _ = client.batch(0, PATIENCE_S)
        assert [header.index for header in reply.headers] == [0, 1]


def test_a_generator_that_cannot_finish_hands_back_what_it_holds(config):
    config.run.stop_timeout_s = SOON_S
    with serving(config) as served, learner(served) as client, generator(served, "generator-0", 2) as leaver:
        client.published(0, PATIENCE_S)
        held = grants(leaver, 2)
        served.control.tell("replay", Drain("generator-0"))
        assert served.reports(Drained) == [Drained("generator-0")]
        with generator(served, "generator-1", 2) as other:
            assert [grant.index for grant in grants(other, 2)] == [grant.index for grant in held]


# ── keys ──


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
