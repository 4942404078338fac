"""The reward `judge` over real HTTP: scores, failures, limits, and what is paid for once."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from asyncrl.commands.reward_trial import try_functions
from asyncrl.config.schema import RewardConfig, RewardTerm
from asyncrl.data.rows import Row
from asyncrl.errors import ConfigError
from asyncrl.rewards import judge as judging
from asyncrl.rewards.functions import resolve
from asyncrl.rewards.pool import RewardPool
from asyncrl.rewards.worker import RewardFailure, Score
from tests.support.judge import JudgeServer, judge_server


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Iterator[JudgeServer]:
    monkeypatch.setattr(judging, "_FIRST_WAIT_S", 0.01)
    with judge_server() as server:
        yield server


def score(
    judge: JudgeServer, *completions: str, file: Path | None = None, terms: Sequence[RewardTerm] = (), **args: Any
) -> list[Score | RewardFailure]:
    term = RewardTerm("judge", args={"url": judge.url, "model": "m", "prompt": "{completion}", **args})
    pool = RewardPool([term, *terms], num_workers=1, time_limit_s=30, judge_file=file)
    try:
        return asyncio.run(pool.score("2+2=", list(completions), "4", json.dumps({"level": "easy"})))
    finally:
        pool.close()


def test_each_completion_is_judged_by_what_the_prompt_says_of_it(judge: JudgeServer) -> None:
    prompt = "{level}: {prompt}{completion}? {answer} {{}}"
    assert score(judge, "right", "wrong {0}", prompt=prompt, body={"max_tokens": 9}) == [
        Score(1.0, correct=True),
        Score(0.0, correct=False),
    ]
    asked = sorted(request["messages"][0]["content"] for request in judge.requests)
    assert asked == ["easy: 2+2=right? 4 {}", "easy: 2+2=wrong {0}? 4 {}"]
    assert [(request["model"], request["max_tokens"], request["temperature"]) for request in judge.requests] == [
        ("m", 9, 0)
    ] * 2


def test_a_judge_and_functions_are_added_up_in_the_order_of_the_terms(judge: JudgeServer) -> None:
    (scored,) = score(judge, "right #### 5", terms=[RewardTerm("numeric", 0.5), RewardTerm("format", 0.25)])
    assert scored == Score(1.25, correct=True, terms={"judge": 1.0, "numeric": 0.0, "format": 1.0})


@pytest.mark.parametrize(
    ("reply", "due"),
    [
        ("0.5", 0.5),
        ("Score: 2? No. **Score:** 0.25", 0.25),
        ("**Score**: 1", 1.0),
        ("score = 0.75.", 0.75),
        ("It is right.", None),
        ("Score: 85", None),
        ("", None),
    ],
)
def test_a_reply_has_a_score_or_is_a_failure(judge: JudgeServer, reply: str, due: float | None) -> None:
    judge.reply = reply
    (scored,) = score(judge, "x")
    if due is None:
        assert isinstance(scored, RewardFailure)
        assert "no score from 0 to 1" in scored.reason
    else:
        assert scored == Score(due, correct=due >= 1)


def test_an_overloaded_judge_is_asked_again_and_one_that_refuses_is_not(judge: JudgeServer) -> None:
    judge.failures = [503, 429]
    assert score(judge, "right") == [Score(1.0, correct=True)]
    assert len(judge.requests) == 3
    judge.failures = [401]
    (refused,) = score(judge, "right")
    assert isinstance(refused, RewardFailure)
    assert "HTTP 401" in refused.reason
    judge.failures = [500] * 9
    (failed,) = score(judge, "right", max_attempts=2)
    assert isinstance(failed, RewardFailure)
    assert "no reply in 2 attempts, at last HTTP 500" in failed.reason


def test_a_judge_that_does_not_answer_in_time_fails_that_completion(judge: JudgeServer) -> None:
    judge.delay_s = 0.5
    (late,) = score(judge, "right", timeout_s=0.05, max_attempts=1)
    assert isinstance(late, RewardFailure)
    assert "no reply within timeout_s = 0.05 s" in late.reason


def test_no_more_calls_than_allowed_are_open_and_a_question_is_asked_once(judge: JudgeServer) -> None:
    judge.delay_s = 0.02
    scored = score(judge, *[f"right {number % 12}" for number in range(24)], max_concurrent=3)
    assert scored == [Score(1.0, correct=True)] * 24
    assert len(judge.requests) == 12
    assert judge.most_open == 3


def test_what_was_said_and_spent_outlives_the_process(judge: JudgeServer, tmp_path: Path) -> None:
    file = tmp_path / "judge.sqlite"
    for _ in range(2):
        assert score(judge, "right", "wrong", file=file, max_calls=2) == [Score(1.0, True), Score(0.0, False)]
    assert len(judge.requests) == 2
    (spent,) = score(judge, "another", file=file, max_calls=2)
    assert isinstance(spent, RewardFailure)
    assert "budget is spent: 2 calls, 14 tokens (max_calls=2)" in spent.reason
    (spent,) = score(judge, "another", file=file, max_total_tokens=14)
    assert isinstance(spent, RewardFailure)
    assert "(max_total_tokens=14)" in spent.reason
    assert len(judge.requests) == 2


def test_the_key_comes_from_the_environment_and_is_written_nowhere(
    judge: JudgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "s3cret")
    judge.failures = [400]
    (failed, _) = score(judge, "a", "b", file=tmp_path / "judge.sqlite", api_key_env="JUDGE_KEY", max_concurrent=1)
    assert judge.authorizations == ["Bearer s3cret"] * 2
    assert isinstance(failed, RewardFailure)
    assert "s3cret" not in failed.reason
    assert all(b"s3cret" not in file.read_bytes() for file in tmp_path.iterdir())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"model": "m"}, "missing 1 required positional argument: 'url'"),
        ({"url": "http://x/v1", "model": "m", "api_key": "k"}, "unexpected keyword argument 'api_key'"),
        ({"url": "localhost:8000/v1", "model": "m"}, "must begin with http"),
        ({"url": "http://x/v1", "model": "m", "prompt": "{answer}"}, r"prompt must have \{completion\}"),
        ({"url": "http://x/v1", "model": "m", "prompt": "{completion} {"}, "expected '}'|Single"),
        ({"url": "http://x/v1", "model": "m", "prompt": "{completion} {0}"}, r"\{0\} is no name"),
        ({"url": "http://x/v1", "model": "m", "api_key_env": "NO_SUCH_KEY"}, "NO_SUCH_KEY: .* is not set"),
        ({"url": "http://x/v1", "model": "m", "max_calls": 0, "timeout_s": "x"}, "timeout_s='x'.*max_calls=0"),
    ],
)
def test_arguments_that_cannot_work_are_refused(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"reward.terms: judge: args: .*{message}"):
        resolve(RewardTerm("judge", args=args))


def test_the_columns_that_its_prompt_names_are_asked_of_the_data() -> None:
    args = {"url": "http://x/v1", "model": "m", "prompt": "{completion} {rubric} {answer}"}
    assert resolve(RewardTerm("judge", args=args)).columns == {"rubric": True}


def test_a_judge_that_is_down_is_named_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "_FIRST_WAIT_S", 0.01)
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        term = RewardTerm("judge", args={"url": url, "model": "m"})
        with pytest.raises(ConfigError, match=f"'judge' failed when .*{url}/chat/completions gave no reply in 4"):
            try_functions(RewardConfig([term]), Row("2+2=", "4"))
