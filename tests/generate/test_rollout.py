"""roll_out: a scripted engine, real reward processes."""

import asyncio
import math
from typing import Any

import numpy as np
import pytest

from asyncrl.config.schema import Config
from asyncrl.errors import RunError
from asyncrl.generate.engines.base import Sampling
from asyncrl.generate.rollout import roll_out
from asyncrl.rewards.pool import RewardPool
from asyncrl.rewards.worker import RewardFailure, Score
from asyncrl.transport.messages.rollouts import LeaseGrant
from tests.support.generator import ScriptedEngine, make_grant


def run_roll_out(engine: ScriptedEngine, pool: RewardPool, grant: LeaseGrant, config: Config | None = None) -> Any:
    return asyncio.run(roll_out(grant, engine, pool, (config or Config()).generator))


class Notes:
    """A scorer that notes what it is given."""

    async def score(self, *arguments: Any) -> list[Score | RewardFailure]:
        self.arguments = arguments
        return [
            Score(1.0, True, {"math": 1.0, "style": 0.5}),
            Score(0.0, False, {"math": 0.0, "style": 0.25}),
            RewardFailure("why"),
        ]


def test_rewards_see_the_columns_and_the_tokens_and_their_terms_come_back_as_means():
    engine, scorer = ScriptedEngine(), Notes()
    engine.texts[1] = ["abc", "a", "abcdef"]
    grant = make_grant(num_samples=3, columns='{"level": 3}')
    group, failures = run_roll_out(engine, scorer, grant)
    prompt, completions, answer, columns, tokens = scorer.arguments
    assert (prompt, answer, columns) == ("2 + 3 = ", "5", '{"level": 3}')
    assert [len(ids) for ids in tokens] == group.lengths.tolist()
    assert completions == ["abc", "a", "abcdef"]
    assert group.term_means == {"math": 0.5, "style": 0.375}
    assert failures == ["why"]


def test_a_group_holds_every_completion_in_order_with_its_reward(pool):
    engine = ScriptedEngine()
    engine.texts[1] = ["abc", "a", "abcdef"]  # the reward is the length
    group, failures = run_roll_out(engine, pool, make_grant(num_samples=3))
    assert (group.index, group.row, group.prompt_token_ids.tolist()) == (7, 70, [1, 8])
    assert group.lengths.tolist() == [3, 1, 6]
    assert group.tokens.tolist() == [0, 1, 2, 0, 0, 1, 2, 3, 4, 5]
    assert group.rewards.tolist() == [3, 1, 6]
    assert group.correct.all()
    assert group.truncated.tolist() == [False, False, True]
    assert group.sample_text == "2 + 3 = abc"
    assert failures == []


def test_a_completion_that_cannot_be_scored_has_a_nan_reward_and_says_why(pool):
    engine = ScriptedEngine()
    engine.texts[1] = ["raises", "abc"]
    group, failures = run_roll_out(engine, pool, make_grant())
    assert np.isnan(group.rewards).tolist() == [True, False]
    assert group.correct.tolist() == [False, True]
    assert len(failures) == 1
    assert failures[0].startswith("KeyError")


@pytest.mark.parametrize(("logprob"), [math.nan, math.inf, -math.inf])
def test_logprobs_that_are_not_finite_make_no_group(pool, logprob):
    engine = ScriptedEngine()
    engine.texts[1], engine.logprob = ["abc", "a"], logprob
    with pytest.raises(RunError, match=r"prompt 7 \(row 70\): completion 0 has logprobs that are not finite"):
        run_roll_out(engine, pool, make_grant())


@pytest.mark.parametrize(("texts", "reason"), [(["abc", ""], "completion 1 is empty"), (["abc"], "1 completions inst")])
def test_an_empty_or_missing_completion_makes_no_group(pool, texts, reason):
    engine = ScriptedEngine()
    engine.texts[1] = texts
    with pytest.raises(RunError, match=reason):
        run_roll_out(engine, pool, make_grant())


def test_training_samples_as_configured_and_an_evaluation_from_the_whole_distribution(pool):
    engine, config = ScriptedEngine(), Config()
    engine.texts[1] = ["a", "b"]
    config.generator.top_p, config.generator.top_k, config.generator.max_tokens = 0.9, 20, 64
    run_roll_out(engine, pool, make_grant(), config)
    run_roll_out(engine, pool, make_grant(kind="eval", lease_id=-3, temperature=0.0), config)
    config.generator.seeded_sampling = False
    run_roll_out(engine, pool, make_grant(), config)
    train, evaluation, unseeded = engine.samplings
    assert train == Sampling(2, temperature=0.7, top_p=0.9, top_k=20, max_tokens=64, seed=11)
    assert evaluation == Sampling(2, temperature=0.0, top_p=1.0, top_k=-1, max_tokens=64, seed=11)
    assert unseeded.seed is None
    assert engine.calls == ["train-3", "eval--3", "train-3"]
