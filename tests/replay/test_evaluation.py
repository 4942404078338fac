"""Evaluations beside training, on real sockets: scripted generators and the real LearnerClient."""

import math

from asyncrl.transport.messages.rollouts import Hello, LeaseFailed, Serving
from asyncrl.transport.messages.supervision import EvalRow, Note
from tests.support.replay import (
    PATIENCE_S,
    answer,
    generator,
    grants,
    learner,
)


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
            "eval/data/sums/accuracy": 3 / 4,
            "eval/data/products/accuracy": 0.0,
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
