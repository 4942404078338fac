"""Leases, grants, groups and failures, on real sockets: scripted generators and the real LearnerClient."""

import math

import msgspec

from asyncrl.config.schema import RewardTerm
from asyncrl.replay import server as server_module
from asyncrl.transport.messages.base import Ack
from asyncrl.transport.messages.rollouts import Hello, LeaseFailed
from asyncrl.transport.messages.supervision import Note
from tests.support.replay import (
    PATIENCE_S,
    SOON_S,
    answer,
    generator,
    grants,
    group_done,
    learner,
    only_acks_come,
    serving,
)


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


def test_with_gdpo_a_group_is_replaced_only_if_none_of_its_weighted_terms_varies(config):
    config.algorithm.zero_variance, config.replay.max_staleness = "refill", 0
    config.algorithm.advantage = "gdpo"
    config.reward.terms = [RewardTerm("math"), RewardTerm("style"), RewardTerm("length", weight=0)]
    scores = [
        {"math": [1, 1], "style": [0, 0], "length": [3, 4]},
        {"math": [1, 0], "style": [0, 1], "length": [4, 4]},  # their sums are equal
        {"math": [0, 0], "style": [0.5, 0.25], "length": [4, 4]},
    ]
    with serving(config) as served, generator(served, credit=100) as dealer, learner(served) as client:
        client.published(0, PATIENCE_S)
        for of_group in scores:
            (grant,) = grants(dealer, 1)
            done, frames = group_done(grant, rewards=(1.0, 1.0))
            header = msgspec.structs.replace(done.header, term_scores=of_group)
            dealer.send(msgspec.structs.replace(done, header=header), frames)
        reply, _ = client.batch(0, PATIENCE_S)
        assert [header.index for header in reply.headers] == [1, 2]


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


def test_a_group_of_another_size_is_a_failed_lease_that_names_it(served):
    with generator(served, credit=1) as dealer, learner(served) as client:
        client.published(0, PATIENCE_S)
        (grant,) = grants(dealer, 1)
        answer(dealer, grant, rewards=(1.0, 0.0, 1.0))
        assert grants(dealer, 1)[0].index == grant.index
        text = served.reports(Note)[0].text
    assert text == "prompt 0 (row 100) retried: generator-0: group 0: 3 completions, algorithm.group_size=2"
