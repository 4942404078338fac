"""What could never work is refused before Ray, by the row or the function."""

import pytest

from asyncrl.commands.reward_trial import check_answers, try_functions
from asyncrl.config.schema import RewardConfig, RewardTerm
from asyncrl.data.rows import Row
from asyncrl.errors import ConfigError, DataError


def rows(*answers):
    return [Row("1+1=", answer, place=f"rows.jsonl:{line}") for line, answer in enumerate(answers, start=1)]


def config(*functions, time_limit_s=5.0):
    return RewardConfig([RewardTerm(name) for name in functions], time_limit_s=time_limit_s)


@pytest.mark.parametrize("reward", ["numeric", "shaped_numeric"])
@pytest.mark.parametrize("answer", ["", "NaN", "none", "1 or 2", r"4\sqrt{7}"])
def test_an_answer_without_a_number_is_found_by_its_row(reward, answer):
    with pytest.raises(DataError, match=rf"data\.eval: rows\.jsonl:2: the answer .* states no number, so '{reward}'"):
        check_answers(config("format", reward), {"data.train": rows("1"), "data.eval": rows("1", answer)})


@pytest.mark.parametrize("answer", ["", "nan", "None"])
def test_an_answer_that_math_cannot_read_is_found_by_its_row(answer):
    with pytest.raises(DataError, match=r"data\.train: rows\.jsonl:3: .*'math' of reward\.terms.*and 1 more rows"):
        check_answers(config("math"), {"data.train": rows("1", r"\frac{\pi}{2}", answer, answer)})


def test_answers_that_can_be_read_pass():
    check_answers(config("numeric"), {"data.train": rows("1e16", "So\n#### 2", r"\boxed{\frac{1}{2}}", "3 apples")})
    check_answers(config("math"), {"data.train": rows("4", r"4\sqrt{7}", r"\text{north}", "(1, 2)"), "data.eval": []})
    check_answers(config("format"), {"data.train": rows("anything at all")})


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("return {'score': 1}", "returned {'score': 1}, not a finite number"),
        ("return (1.0, 'why')", "not a finite number"),
        ("return None", "returned None"),
        ("return float('nan')", "returned nan"),
        ("return completion.nothing", "AttributeError"),
        ("import time; time.sleep(100)", "took longer than reward.time_limit_s = 0.5 s"),
        ("raise SystemExit", "SystemExit"),
    ],
)
def test_a_function_that_can_never_work_is_tried_and_named(tmp_path, body, reason):
    (tmp_path / "own.py").write_text(f"def score(completion, answer):\n    {body}\n")
    with pytest.raises(ConfigError, match=r"reward\.terms: '.*own\.py:score' failed when it was tried") as caught:
        try_functions(config("numeric", f"{tmp_path}/own.py:score", time_limit_s=0.5), rows("2")[0])
    assert reason in str(caught.value)


def test_a_function_that_works_is_tried_with_the_columns_of_its_row(tmp_path):
    (tmp_path / "own.py").write_text(
        "async def score(completion, answer, level):\n    return level * (completion == answer)\n"
    )
    try_functions(config(f"{tmp_path}/own.py:score"), Row("1+1=", "2", columns='{"level": 3}'))
