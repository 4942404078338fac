"""The environments of the examples as a reader meets them: short, possible, and doing what their first lines say."""

from __future__ import annotations

import asyncio
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from asyncrl.commands.check import run_check
from asyncrl.config.load import load
from asyncrl.data.tiny_tokenizer import build_tokenizer
from asyncrl.environments.base import Action, Row, Step
from asyncrl.environments.resolve import environment_rows, make
from asyncrl.errors import ConfigError

EXAMPLES = Path(__file__).parents[2] / "examples"
WITH_CONFIG = sorted(EXAMPLES.glob("*.yaml"))


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXAMPLES.parent)


def play(name: str, answer: str, *actions: str) -> list[Step]:
    environment: Any = make(load(EXAMPLES / name).environment)

    async def steps() -> list[Step]:
        await environment.reset(Row(0, "", answer, 0))
        return [await environment.step(Action(action, [])) for action in actions]

    return asyncio.run(steps())


@pytest.mark.parametrize("name", ["calculator.py", "number_guessing.py"])
def test_an_environment_is_short(name: str) -> None:
    assert len((EXAMPLES / name).read_text().splitlines()) < 60


@pytest.mark.parametrize("file", WITH_CONFIG, ids=lambda file: file.name)
def test_each_config_is_possible_and_its_rows_and_episodes_fit(file: Path) -> None:
    config = load(file)
    if config.environment.name.startswith("reasoning_gym:"):
        pytest.importorskip("reasoning_gym", reason="the extra `environments` is not installed")
    run_check(config, Console(file=io.StringIO()))
    train, test, warmup = (environment_rows(config.environment, split, 0) for split in ("train", "test", "warmup"))
    tokenizer = build_tokenizer(warmup, 64)
    for prompt, answer in [*train, *test]:
        ids = tokenizer(prompt)["input_ids"]
        assert len(ids) <= config.data.max_prompt_tokens
        said = [] if config.environment.name.startswith("reasoning_gym:") else tokenizer(answer)["input_ids"]
        assert tokenizer.unk_token_id not in [*ids, *said]  # reasoning-gym's answer is a place, for its own code alone


def test_the_calculator_answers_calls_and_scores_answers() -> None:
    assert play("calculator.yaml", "1702", "?37*46", "1702") == [Step("=1702;"), Step(reward=1.0, done=True)]
    assert play("calculator.yaml", "1702", "?37*", "1703") == [Step("=?;"), Step(reward=0.0, done=True)]


def test_the_calculators_test_rows_are_never_trained_on() -> None:
    environment = load(EXAMPLES / "calculator.yaml").environment
    train, test = (set(environment_rows(environment, split, 0)) for split in ("train", "test"))
    assert len(train) + len(test) == 90 * 90
    assert not train & test


def test_the_number_guessing_gives_hints_until_the_secret_is_said() -> None:
    assert play("number_guessing.yaml", "6", "5", "7", "6") == [Step(">"), Step("<"), Step(reward=1.0, done=True)]
    assert play("number_guessing.yaml", "6", "55") == [Step(done=True)]


def test_a_task_of_reasoning_gym_scores_its_own_questions() -> None:
    pytest.importorskip("reasoning_gym", reason="the extra `environments` is not installed")
    environment = load(EXAMPLES / "reasoning_gym.yaml").environment
    (question, place), *_ = environment_rows(environment, "test", 3)
    a, sign, b = question.removeprefix("Calculate ").removesuffix(".").split()
    total = {"+": int(a) + int(b), "-": int(a) - int(b)}[sign]
    for said, reward in [(f"{total}", 1.0), (f"it is <answer>{total}</answer>", 1.0), (f"{total + 1}", 0.0)]:
        assert play("reasoning_gym.yaml", place, said) == [Step(reward=reward, done=True)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"name": "reasoning_gym:nothing"}, "Dataset 'nothing' not registered"), ({"args": {"foo": 1}}, "'foo'")],
)
def test_a_task_that_reasoning_gym_does_not_have_is_refused(changes: dict[str, Any], message: str) -> None:
    pytest.importorskip("reasoning_gym", reason="the extra `environments` is not installed")
    environment = replace(load(EXAMPLES / "reasoning_gym.yaml").environment, **changes)
    with pytest.raises(ConfigError, match=message):
        make(environment)
