"""Generators that die, join and leave, on real sockets: scripted generators and the real LearnerClient."""

from asyncrl.transport.messages.rollouts import CompletionDone, Hello, LeaseGrant, Serving
from asyncrl.transport.messages.scaling import Drain, Drained, Gone
from asyncrl.transport.messages.supervision import Note
from asyncrl.transport.wire import group_from_wire, group_to_wire
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
from tests.support.wire import make_group, peer


def test_the_prompts_of_a_dead_generator_go_to_another_at_once_and_what_it_sent_late_is_refused(served, config):
    config.replay.lease_timeout_s = 600.0
    with generator(served, "generator-0", 2) as dead, learner(served) as client:
        client.published(0, PATIENCE_S)
        lost = grants(dead, 2)
        with generator(served, "generator-1", 4) as other:
            grants(other, 2)
            served.control.send("replay", Gone("generator-0", "failed: its process died"))
            assert [grant.index for grant in grants(other, 2)] == [grant.index for grant in lost]
            assert [member.name for member in client.members(PATIENCE_S).members] == ["generator-1"]
            answer(dead, lost[0])
            assert dead.hears_nothing()
    assert [note.text for note in served.reports(Note)] == ["2 prompts of generator-0 go to the next free generator"]


def finished(grant: LeaseGrant, position: int, version: int = 0) -> tuple[CompletionDone, list]:
    header, frames = group_to_wire(make_group(grant.index, version, rewards=(0.0,)))
    return CompletionDone(grant.lease_id, position, header), frames


def test_what_a_dead_generator_had_finished_goes_to_the_next_holder_and_nobody_elses_word_counts(served):
    with generator(served, "generator-0", 2) as dead, learner(served) as client:
        client.published(0, PATIENCE_S)
        lost = grants(dead, 2)
        dead.send(*finished(lost[0], position=1))
        with generator(served, "generator-1", 4) as other:
            (mine, _) = grants(other, 2)
            other.send(*finished(lost[1], position=0))  # it does not hold that prompt
            other.send(*finished(mine, position=2))  # a group has two
            dead.send(*finished(lost[0], position=1))  # as after a reconnection
            dead.send(Hello("tcp://generator-0", 1, 2, serves=True, held=[grant.lease_id for grant in lost]))
            client.members(PATIENCE_S)
            served.control.send("replay", Gone("generator-0", "failed: its process died"))
            (first, frames), (second, none) = [other.receive() for _ in range(2)]
            assert [(first.index, len(first.kept)), (second.index, len(second.kept))] == [(0, 1), (1, 0)]
            assert first.kept[0].position == 1
            assert (first.kept[0].header.lengths, none) == ([1], [])
            assert group_from_wire(first.kept[0].header, frames).versions.tolist() == [0]
            answer(other, first)
            answer(other, second)
            batch, _ = client.batch(0, PATIENCE_S)
            assert [header.index for header in batch.headers] == [0, 1]


def test_a_prompt_that_took_its_generators_down_is_quarantined_with_the_reason_and_nothing_of_it_is_kept(served):
    with learner(served) as client:
        for life in range(2):  # replay.max_lease_attempts=2
            with generator(served, credit=1) as dealer:
                client.members(PATIENCE_S)
                client.published(0, PATIENCE_S)
                (grant,) = grants(dealer, 1)
                assert grant.index == 0
                dealer.send(*finished(grant, position=life))
                client.members(PATIENCE_S)
            served.control.send("replay", Gone("generator-0", f"failed: death {life}"))
            notes = served.reports(Note, number=1)
        with generator(served, credit=1) as dealer:
            assert grants(dealer, 1)[0].index == 1
    assert notes[-1].text == "prompt 0 (row 100) quarantined: generator-0 failed: death 1"
    kept = served.server._kept
    assert (kept.num_handed_on, len(kept)) == (1, 0)


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
        served.control.send("replay", Drain("generator-0"))
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
        served.control.send("replay", Drain("generator-0"))
        assert served.reports(Drained) == [Drained("generator-0")]
        with generator(served, "generator-1", 2) as other:
            assert [grant.index for grant in grants(other, 2)] == [grant.index for grant in held]
