"""roll_out: a scripted engine, real reward processes."""

import asyncio
import math
from typing import Any

import numpy as np
import pytest

from asyncrl.config.schema import Config
from asyncrl.errors import RunError, WireError
from asyncrl.generate.engines.base import Sampling
from asyncrl.generate.finished_completions import Finished, finished_before
from asyncrl.generate.rollout import roll_out
from asyncrl.rewards.pool import RewardPool
from asyncrl.rewards.worker import RewardFailure, Score
from asyncrl.transport.messages.rollouts import Kept, LeaseGrant
from asyncrl.transport.wire import group_to_wire
from tests.support.generator import ScriptedEngine, make_grant


def run_roll_out(
    engine: ScriptedEngine,
    pool: RewardPool,
    grant: LeaseGrant,
    config: Config | None = None,
    finished: Finished | None = None,
) -> Any:
    return asyncio.run(roll_out(grant, finished or Finished(), engine, pool, config or Config()))


class Notes:
    """A scorer that notes what it is given."""

    async def score(self, *arguments: Any) -> list[Score | RewardFailure]:
        self.arguments = arguments
        return [
            Score(1.0, True, {"math": 1.0, "style": 0.5}),
            Score(0.0, False, {"math": 0.0, "style": 0.25}),
            RewardFailure("why"),
        ]


def test_rewards_see_the_columns_and_the_tokens_and_their_terms_come_back_for_each_completion():
    engine, scorer = ScriptedEngine(), Notes()
    engine.texts[1] = ["abc", "a", "abcdef"]
    grant = make_grant(num_samples=3, columns='{"level": 3}')
    group, failures = run_roll_out(engine, scorer, grant)
    prompt, completions, answer, columns, tokens = scorer.arguments
    assert (prompt, answer, columns) == ("2 + 3 = ", "5", '{"level": 3}')
    assert [len(ids) for ids in tokens] == group.lengths.tolist()
    assert completions == ["abc", "a", "abcdef"]
    assert {label: scores[:2] for label, scores in group.term_scores.items()} == {"math": [1, 0], "style": [0.5, 0.25]}
    assert [math.isnan(scores[2]) for scores in group.term_scores.values()] == [True, True]
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


def test_an_engine_that_does_not_say_which_tokens_top_k_left_makes_no_group(pool):
    engine, config = ScriptedEngine(), Config()
    engine.texts[1], engine.tells_supports, config.generator.top_k = ["abc", "a"], False, 20
    with pytest.raises(RunError, match=r"row 70\): completion 0 does not say which tokens top-k and top-p left"):
        run_roll_out(engine, pool, make_grant(), config)


@pytest.mark.parametrize(("texts", "reason"), [(["abc", ""], "is empty"), (["abc"], "0 completions instead of 1")])
def test_an_empty_or_missing_completion_makes_no_group(pool, texts, reason):
    engine = ScriptedEngine()
    engine.texts[1] = texts
    with pytest.raises(RunError, match=reason):
        run_roll_out(engine, pool, make_grant())


def test_training_samples_as_configured_and_an_evaluation_from_the_whole_distribution(pool):
    engine, config = ScriptedEngine(), Config()
    engine.texts[1] = ["a", "b"]
    config.generator.top_p, config.generator.top_k, config.generator.max_tokens = 0.9, 20, 512
    config.replay.max_staleness = 0
    run_roll_out(engine, pool, make_grant(), config)
    run_roll_out(engine, pool, make_grant(kind="eval", lease_id=-3, temperature=0.0), config)
    config.generator.seeded_sampling = False
    run_roll_out(engine, pool, make_grant(), config)
    train, evaluation, unseeded = engine.samplings[:2], engine.samplings[2:4], engine.samplings[4:]
    settings = {"temperature": 0.7, "top_p": 0.9, "top_k": 20, "max_tokens": 512}
    assert train == [Sampling(1, **settings, seed=seed) for seed in (11, 12)]
    whole = {"temperature": 0.0, "top_p": 1.0, "top_k": -1, "max_tokens": 512}
    assert evaluation == [Sampling(1, **whole, seed=seed) for seed in (11, 12)]
    assert [sampling.seed for sampling in unseeded] == [None, None]
    assert engine.calls == ["train-3-0", "train-3-1", "eval--3-0", "eval--3-1", "train-3-0", "train-3-1"]


def test_where_versions_mix_only_evaluations_are_seeded_unless_seeds_are_asked_for(pool):
    engine, config = ScriptedEngine(), Config()
    engine.texts[1] = ["a", "b"]
    assert config.replay.max_staleness > 0
    config.generator.keep_finished = False
    run_roll_out(engine, pool, make_grant(), config)
    run_roll_out(engine, pool, make_grant(kind="eval", lease_id=-3), config)
    config.generator.seeded_sampling = True
    run_roll_out(engine, pool, make_grant(), config)
    assert [sampling.seed for sampling in engine.samplings] == [None, 11, 11]


def test_short_completions_of_a_group_are_one_request_as_nothing_is_kept_of_them(pool):
    engine, config, finished = ScriptedEngine(), Config(), Finished()
    engine.texts[1] = ["a", "b"]
    config.generator.max_tokens = 255
    group, _ = run_roll_out(engine, pool, make_grant(), config, finished)
    assert (engine.calls, engine.samplings[0].num_samples, group.size) == (["train-3"], 2, 2)
    assert finished.take_unsent() == []
    config.generator.keep_finished = True
    run_roll_out(engine, pool, make_grant(), config, finished)
    assert [position for position, _ in finished.take_unsent()] == [0, 1]


def test_what_an_earlier_holder_had_finished_is_not_sampled_again_and_keeps_its_tokens_and_versions(pool):
    engine, finished, config = ScriptedEngine(), Finished(), Config()
    config.generator.seeded_sampling, config.generator.top_k = True, 20
    engine.texts[1], engine.version = ["abc", "a", "abcdef"], 4
    whole, _ = run_roll_out(engine, pool, make_grant(num_samples=3), config, finished)
    parts = {position: group_to_wire(group) for position, group in finished.take_unsent()}
    assert finished.take_unsent() == []
    kept = [Kept(position, parts[position][0]) for position in (0, 2)]
    frames = [bytes(frame) for position in (0, 2) for frame in parts[position][1]]
    grant = make_grant(num_samples=3, kept=kept)
    engine.calls.clear()
    engine.version = 5
    group, _ = run_roll_out(engine, pool, grant, config, finished_before(grant, frames))
    assert engine.calls == ["train-3-1"]
    assert engine.samplings[-1].seed == 12
    assert group.versions.tolist() == [4, 4, 4, 5, 4, 4, 4, 4, 4, 4]
    assert group.support_sizes.tolist() == [2] * 10
    for name in ("tokens", "logprobs", "lengths", "rewards", "truncated", "support_ids", "support_sizes"):
        assert np.array_equal(getattr(group, name), getattr(whole, name)), name
    with pytest.raises(WireError, match="11 frames of 2 completions"):
        finished_before(grant, frames[1:])
