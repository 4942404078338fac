"""The examples as a reader meets them: short, possible, and doing what their first lines say."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from asyncrl.config.load import load
from asyncrl.data.tiny_tokenizer import build_tokenizer
from asyncrl.environments.base import Action, Row, Step
from asyncrl.environments.resolve import environment_rows, make
from asyncrl.launch.check import run_check

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


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.py")), ids=lambda file: file.name)
def test_each_example_is_short(file: Path) -> None:
    assert len(file.read_text().splitlines()) < 60


@pytest.mark.parametrize("file", WITH_CONFIG, ids=lambda file: file.name)
def test_each_config_is_possible_and_its_rows_and_episodes_fit(file: Path) -> None:
    config = load(file)
    run_check(config, Console(file=io.StringIO()))
    train, test, warmup = (environment_rows(config.environment, split, 0) for split in ("train", "test", "warmup"))
    tokenizer = build_tokenizer(warmup, 64)
    for prompt, answer in [*train, *test]:
        ids = tokenizer(prompt)["input_ids"]
        assert len(ids) <= config.data.max_prompt_tokens
        assert tokenizer.unk_token_id not in [*ids, *tokenizer(answer)["input_ids"]]


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
