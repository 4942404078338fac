"""Arguments by name, sync and async, from modules and files; and the signatures that are refused."""

import asyncio
import textwrap

import pytest

from asyncrl.config.schema import RewardTerm
from asyncrl.errors import ConfigError
from asyncrl.rewards.functions import resolve
from asyncrl.rewards.pool import RewardPool
from asyncrl.rewards.worker import Score

FUNCTIONS = """
import asyncio
import numpy
import neighbour

async def judged(completion, answer):
    await asyncio.sleep(0)
    return completion == answer

def close(completion, answer):
    return numpy.isclose(float(completion), float(answer))

def levels(level, completion, bonus=1, absent=10):
    return level + bonus + absent

def everything(tokens, **kwargs):
    return tokens == [1, 2] and sorted(kwargs) == ["answer", "bonus", "completion", "level", "messages", "prompt"]

def conversation(messages, answer):
    return messages[-1]["content"] == "1+1=" and answer == "2"

def at_position(answer, /, *, completion):
    return completion == answer

def of_neighbour(completion):
    return neighbour.length(completion)

class Judge:
    def __call__(self, completion):
        return 1

judge = Judge()

def trl(prompts, completions, **kwargs):
    return [1.0] * len(completions)

def as_dict(completion):
    return {"score": 1.0}
"""


@pytest.fixture(name="file")
def functions_file(tmp_path):
    (tmp_path / "neighbour.py").write_text("def length(text):\n    return len(text)\n")
    file = tmp_path / "my rewards.py"
    file.write_text(textwrap.dedent(FUNCTIONS))
    return file


def score(file, function, completion="2", time_limit_s=5.0):
    pool = RewardPool([RewardTerm(f"{file}:{function}")], num_workers=1, time_limit_s=time_limit_s)
    try:
        [result] = asyncio.run(pool.score("1+1=", [completion], "2", '{"level": 3, "bonus": 4}', [[1, 2]]))
    finally:
        pool.close()
    return result


@pytest.mark.parametrize(
    ("function", "reward"),
    [
        ("judged", 1),
        ("close", 1),
        ("levels", 17),
        ("everything", 1),
        ("conversation", 1),
        ("at_position", 1),
        ("of_neighbour", 1),
        ("judge", 1),
    ],
)
def test_a_function_gets_by_name_what_it_asks_for(file, function, reward):
    assert score(file, function) == Score(reward, correct=True)


def test_a_result_that_is_no_number_is_a_failure_that_shows_it(file):
    assert "as_dict returned {'score': 1.0}, not a finite number" in score(file, "as_dict").reason


def test_an_async_function_that_waits_too_long_is_stopped(tmp_path):
    (tmp_path / "slow.py").write_text("import asyncio\nasync def judge(completion):\n    await asyncio.sleep(100)\n")
    assert (
        "took longer than reward.time_limit_s = 0.2 s" in score(tmp_path / "slow.py", "judge", time_limit_s=0.2).reason
    )


def test_a_function_of_a_batch_is_refused_with_what_to_write_instead(file):
    with pytest.raises(ConfigError, match=r"takes prompts, completions.*scores one completion.*def score\(completion"):
        resolve(RewardTerm(f"{file}:trl"))


def test_the_columns_that_a_function_needs_are_known_before_it_is_called(file):
    assert resolve(RewardTerm(f"{file}:levels")).columns == {"level": True, "bonus": False, "absent": False}
    assert resolve(RewardTerm(f"{file}:everything")).takes_every_column
    assert resolve(RewardTerm("numeric")).columns == {}


def test_a_file_that_is_missing_or_broken_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no file .*absent\.py"):
        resolve(RewardTerm(f"{tmp_path}/absent.py:f"))
    (tmp_path / "broken.py").write_text("x = 1\ndef f(:\n")
    with pytest.raises(ConfigError, match=r"broken\.py does not import: SyntaxError: .*line 2"):
        resolve(RewardTerm(f"{tmp_path}/broken.py:f"))
    (tmp_path / "exits.py").write_text("raise SystemExit(1)\n")
    with pytest.raises(ConfigError, match=r"exits\.py does not import: SystemExit: 1"):
        resolve(RewardTerm(f"{tmp_path}/exits.py:f"))
    (tmp_path / "whole.py").write_text("x = 1\n")
    with pytest.raises(ConfigError, match="has no 'g'"):
        resolve(RewardTerm(f"{tmp_path}/whole.py:g"))
