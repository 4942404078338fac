"""An environment is tried before Ray starts: what never works is refused with the reason."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from asyncrl.commands.check import run_check
from asyncrl.commands.environment_trial import try_environment
from asyncrl.config.environment import EnvironmentConfig
from asyncrl.config.load import load
from asyncrl.data.tiny_tokenizer import build_tokenizer
from asyncrl.errors import ConfigError
from asyncrl.types import Prompt

FAULTY = "tests.support.faults.environment_faults:Faulty"


def test_an_environment_that_plays_a_turn_is_accepted() -> None:
    try_environment(EnvironmentConfig(FAULTY), Prompt(0, [1], "say something", ""))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("raises", "KeyError: 'no such task'"),
        ("returns text", "step returned 'x', not a Step"),
        ("awaits", "took longer than environment.time_limit_s = 0.5 s"),
        ("kills its process", "exit code 7"),
    ],
)
def test_an_environment_that_fails_on_the_first_row_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=rf"Faulty failed when it was tried on row 3 of data.train.*{reason}"):
        try_environment(EnvironmentConfig(FAULTY, time_limit_s=0.5), Prompt(3, [1], text, ""))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("returns a message", "answered messages, but the tokenizer has no chat template"),
        ("returns no token", "the observation is no tokens of the model"),
    ],
)
def test_an_environment_that_says_what_the_model_cannot_read_is_refused(text: str, reason: str) -> None:
    tokenizer = build_tokenizer([("12", "3")], max_length=9)
    with pytest.raises(ConfigError, match=reason):
        try_environment(EnvironmentConfig(FAULTY), Prompt(0, [1], text, ""), tokenizer)


def test_check_refuses_an_environment_that_fails_on_the_first_row_and_prints_nothing(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "raises", "answer": "1"}\n' * 40)
    overrides = [f"data.train={tmp_path / 'rows.jsonl'}", "data.eval=null", "run.eval_every=0", "cluster.device=cpu"]
    said = io.StringIO()
    with pytest.raises(ConfigError, match=r"failed when it was tried on row 0 of data\.train.*no such task"):
        run_check(load("configs/quickstart.yaml", [*overrides, f"environment.name={FAULTY}"]), Console(file=said))
    assert said.getvalue() == ""
