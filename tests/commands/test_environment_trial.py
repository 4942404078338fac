"""An environment is tried before Ray starts: what never works is refused with the reason."""

from __future__ import annotations

import pytest

from asyncrl.commands.environment_trial import try_environment
from asyncrl.config.environment import EnvironmentConfig
from asyncrl.errors import ConfigError
from asyncrl.types import Prompt

FAULTY = "tests.support.environment_faults:Faulty"


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
