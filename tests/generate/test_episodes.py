"""Episodes of a lease: a scripted engine, real environment processes, a real tokenizer."""

from __future__ import annotations

import asyncio
import string
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from asyncrl.config.schema import Config
from asyncrl.data.tiny_tokenizer import build_tokenizer
from asyncrl.environments.pool import EnvironmentPool, EpisodeFailedError
from asyncrl.errors import RunError
from asyncrl.generate.engines.base import Sampling
from asyncrl.generate.episodes import Episodes
from asyncrl.generate.finished_completions import Finished
from asyncrl.generate.observation_tokens import ObservationTokens
from asyncrl.transport.messages.rollouts import LeaseGrant
from asyncrl.transport.wire import group_from_wire, group_to_wire
from asyncrl.types import NO_VERSION, Completion, Group

TOKENIZER = build_tokenizer([(string.ascii_letters + string.digits + " .:,[]+=", "")], 512)
EOS, UNKNOWN = TOKENIZER.eos_token_id, TOKENIZER.unk_token_id
CHAT_TEMPLATE = (
    "{% for message in messages %}[{{ message.role }}]{{ message.content }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
PROMPT = TOKENIZER("2+3=")["input_ids"]


class ScriptedEngine:
    """Says the next line of each episode's script, a token id that no text has before each; publishes after each."""

    def __init__(self, *scripts: list[str]) -> None:
        self.scripts = scripts
        self.prompts: dict[tuple[int, int], list[int]] = {}
        self.samplings: dict[tuple[int, int], Sampling] = {}

    async def sample(self, request_id: str, prompt_token_ids: list[int], sampling: Sampling) -> list[Completion]:
        episode, turn = map(int, request_id.split("-")[-2:])
        self.prompts[episode, turn] = prompt_token_ids
        self.samplings[episode, turn] = sampling
        text = self.scripts[episode][turn]
        token_ids = [UNKNOWN, *TOKENIZER(text)["input_ids"], EOS][: sampling.max_tokens]
        said = TOKENIZER.decode(token_ids, skip_special_tokens=True)
        logprobs = -np.arange(1, len(token_ids) + 1, dtype=np.float32) / 10
        versions = np.full(len(token_ids), turn, np.int32)
        reason: Any = "stop" if token_ids[-1] == EOS else "length"
        ids, sizes = np.zeros(0, np.int32), np.zeros(0, np.int32)
        if sampling.truncates:  # the k-th token of a turn was one of k
            sizes = np.arange(1, len(token_ids) + 1, dtype=np.int32)
            ids = np.repeat(np.array(token_ids, np.int32), sizes)
        return [Completion(np.array(token_ids, np.int32), logprobs, versions, said, reason, ids, sizes)]


@pytest.fixture
def play() -> Iterator[Any]:
    """play(engine, environment, **config) → (group, reasons)."""
    pools = []

    def run(
        engine: ScriptedEngine, name: str, prompt: str = "2+3=", finished: Finished | None = None, **changes: Any
    ) -> tuple[Group, list[str]]:
        config = Config()
        config.generator.max_tokens, config.generator.seeded_sampling = changes.pop("max_tokens", 200), True
        config.generator.top_k = changes.pop("top_k", -1)
        columns = changes.pop("columns", "")
        config.environment.name = name if ":" in name else f"tests.support.environments:{name}"
        for key, value in changes.items():
            setattr(config.environment, key, value)
        pools.append(EnvironmentPool(config.environment))
        episodes = Episodes(engine, pools[-1], ObservationTokens(TOKENIZER), config)
        grant = LeaseGrant(3, 7, "train", 70, PROMPT, prompt, "5", len(engine.scripts), 0.7, 11, 60.0, columns)
        return asyncio.run(episodes.roll_out(grant, finished or Finished()))

    yield run
    for pool in pools:
        pool.close()


def said(text: str) -> list[int]:
    return [UNKNOWN, *TOKENIZER(text)["input_ids"], EOS]


def test_each_turn_goes_on_from_the_very_tokens_that_were_sampled_and_the_environments_stand_between(play: Any) -> None:
    engine = ScriptedEngine(["a", "b", "done"], ["done"])
    group, failures = play(engine, "Tells")
    ok = TOKENIZER("ok")["input_ids"]
    assert failures == []
    assert engine.prompts[0, 1] == [*PROMPT, *said("a"), *ok]
    assert engine.prompts[0, 2] == [*PROMPT, *said("a"), *ok, *said("b"), *ok]
    assert group.prompt_token_ids.tolist() == PROMPT
    assert group.tokens.tolist() == [*said("a"), *ok, *said("b"), *ok, *said("done"), *said("done")]
    assert group.spans == [[3, 2, 3, 2, 6], [6]]
    assert group.lengths.tolist() == [16, 6]
    assert group.versions[:16].tolist() == [0] * 3 + [NO_VERSION] * 2 + [1] * 3 + [NO_VERSION] * 2 + [2] * 6
    assert group.logprobs[:10] == pytest.approx([-0.1, -0.2, -0.3, 0, 0, -0.1, -0.2, -0.3, 0, 0])
    assert group.num_turns.tolist() == [3, 1]
    assert group.rewards.tolist() == [1.5, 0.5]  # the sum over the turns
    assert group.turn_rewards == [[0.5, 0.5, 0.5], [0.5]]
    assert group.correct.tolist() == [True, False]
    assert group.truncated.tolist() == [False, False]
    assert group.sample_text == "2+3=aokbokdone"
    assert group.environment_s > 0


def test_under_top_k_each_sampled_token_has_the_tokens_that_were_left_and_an_environments_has_none(play: Any) -> None:
    group, _ = play(ScriptedEngine(["a", "done"]), "Tells", top_k=20)
    assert group.spans == [[3, 2, 6]]
    assert group.support_sizes.tolist() == [1, 2, 3, 0, 0, 1, 2, 3, 4, 5, 6]
    assert group.support_ids.tolist() == np.repeat(group.tokens, group.support_sizes).tolist()


@pytest.mark.parametrize("top_k", [-1, 20])
def test_an_episode_that_had_ended_is_not_played_again_and_keeps_its_turns(play: Any, top_k: int) -> None:
    engine, finished = ScriptedEngine(["a", "b", "done"], ["done"], ["a", "done"]), Finished()
    whole, _ = play(engine, "Tells", finished=finished, top_k=top_k)
    ended = {position: group_from_wire(*group_to_wire(group)) for position, group in finished.take_unsent()}
    assert sorted(ended) == [0, 1, 2]
    engine.prompts.clear()
    group, _ = play(engine, "Tells", finished=Finished({0: ended[0], 1: ended[1]}), top_k=top_k)
    assert {episode for episode, _ in engine.prompts} == {2}
    arrays = ("tokens", "logprobs", "versions", "lengths", "rewards", "correct", "truncated")
    for name in (*arrays, "support_ids", "support_sizes"):
        assert np.array_equal(getattr(group, name), getattr(whole, name)), name
    assert (group.spans, group.turn_rewards, group.sample_text) == (whole.spans, whole.turn_rewards, whole.sample_text)


def test_an_environment_sees_its_row_and_what_was_sampled(play: Any) -> None:
    group, _ = play(ScriptedEngine(["a", "done"]), "Sees", max_turns=2, columns='{"level": 3}')
    given = group.tokens[~group.sampled]
    assert TOKENIZER.decode(given) == f"70 2+3= 5 11 level: 3 {said('a')}"


def test_turns_are_sampled_with_seeds_of_their_own(play: Any) -> None:
    engine = ScriptedEngine(["a", "done"], ["a", "done"])
    play(engine, "Tells")
    assert len({sampling.seed for sampling in engine.samplings.values()}) == 4
    assert all(sampling.num_samples == 1 for sampling in engine.samplings.values())


@pytest.mark.parametrize(
    ("limits", "spans"),
    [
        ({"max_turns": 2}, [[3, 2, 3]]),
        ({"max_tokens": 9}, [[3, 2, 3]]),  # no room for `ok` and a token
        ({"max_tokens": 7}, [[3, 2, 2]]),
        ({"max_tokens": 2}, [[2]]),
        ({"episode_time_limit_s": 1e-9}, [[3]]),
        ({"max_turn_tokens": 1, "max_turns": 3}, [[1, 2, 1, 2, 1]]),
    ],
)
def test_an_episode_over_a_limit_is_truncated_after_a_sampled_token_and_keeps_what_it_was_paid(
    play: Any, limits: dict[str, Any], spans: list[list[int]]
) -> None:
    group, failures = play(ScriptedEngine(["a"] * 20), "Tells", **limits)
    assert failures == []
    assert group.spans == spans
    assert group.truncated.tolist() == [True]
    assert group.rewards.tolist() == [0.5 * group.num_turns[0]]


def test_an_environment_that_fails_quarantines_its_episode_alone_and_keeps_its_tokens(play: Any) -> None:
    engine = ScriptedEngine(["a", "raises"], ["done"], ["returns text"])
    group, failures = play(engine, "tests.support.faults.environment_faults:Faulty")
    assert np.isnan(group.rewards).tolist() == [True, False, True]
    assert group.correct.tolist() == [False, True, False]
    assert [len(spans) for spans in group.spans] == [3, 1, 1]
    assert [len(rewards) for rewards in group.turn_rewards] == [2, 1, 1]
    assert [failure.partition(":")[0] for failure in failures] == ["KeyError", "TypeError"]


def test_turns_whose_rewards_add_up_beyond_float32_quarantine_their_episode_alone(play: Any) -> None:
    """Else the sum would be infinite, and the whole update skipped."""
    engine = ScriptedEngine(["returns 3e38", "returns 3e38", "done"], ["returns 3e38", "done"])
    group, failures = play(engine, "tests.support.faults.environment_faults:Faulty")
    assert np.isnan(group.rewards).tolist() == [True, False]
    assert failures == ["the reward, 6e+38, is beyond float32 (±3.4e+38); scale it down"]


def test_an_observation_that_the_model_cannot_read_quarantines_the_episode(play: Any) -> None:
    group, failures = play(ScriptedEngine(["a"]), "Tells", args={"observation": [5, len(TOKENIZER)]})
    assert np.isnan(group.rewards).all()
    assert "no tokens of the model" in failures[0]


def test_an_environment_that_cannot_begin_makes_no_group(play: Any) -> None:
    with pytest.raises(RunError, match=r"prompt 7 \(row 70\): its environment cannot begin: KeyError"):
        play(ScriptedEngine(["a"]), "tests.support.faults.environment_faults:Faulty", prompt="raises")


def test_an_opening_takes_the_prompts_place(play: Any) -> None:
    engine = ScriptedEngine(["done"], ["done"])
    group, _ = play(engine, "Tells", args={"opening": "go"})
    assert group.prompt_token_ids.tolist() == engine.prompts[1, 0] == TOKENIZER("go")["input_ids"]


def test_episodes_of_a_group_that_begin_differently_make_no_group(play: Any) -> None:
    with pytest.raises(RunError, match="its episodes begin differently"):
        play(ScriptedEngine(["done"], ["done"]), "BeginsAnyhow")


def test_an_opening_that_is_too_long_makes_no_group(play: Any) -> None:
    with pytest.raises(RunError, match=r"begin with 600 tokens, data\.max_prompt_tokens=512"):
        play(ScriptedEngine(["done"]), "Tells", args={"opening": "a" * 600})


# ── messages ──


def chat() -> ObservationTokens:
    tokenizer = build_tokenizer([(string.ascii_letters + string.digits + " .:,[]+=<>|_/\n", "")], 512)
    tokenizer.chat_template = CHAT_TEMPLATE
    return ObservationTokens(tokenizer)


def test_messages_go_on_as_the_template_would_render_the_whole_conversation() -> None:
    tokens = chat()
    tokenizer = tokens._tokenizer
    asked, answered = {"role": "user", "content": "2+3"}, {"role": "assistant", "content": "call"}
    result = [{"role": "tool", "content": "5"}]
    opening = tokens.opening([asked])
    sampled = [*tokenizer("call")["input_ids"], tokenizer.eos_token_id]
    whole = tokenizer.apply_chat_template([asked, answered, *result], tokenize=False, add_generation_prompt=True)
    assert tokens.text([*opening, *sampled, *tokens.reply(result, after_eos=True)]) == whole
    cut = sampled[:-1]  # by the limit of its turn: the template ends it
    assert tokens.text([*opening, *cut, *tokens.reply(result, after_eos=False)]) == whole


def test_messages_without_a_template_and_those_it_refuses_are_an_episodes_failure() -> None:
    messages = [{"role": "user", "content": "x"}]
    with pytest.raises(EpisodeFailedError, match="no chat template"):
        ObservationTokens(TOKENIZER).reply(messages, after_eos=True)
    tokens = chat()
    tokens._tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(EpisodeFailedError, match="roles must alternate"):
        tokens.reply(messages, after_eos=True)
