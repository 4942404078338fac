"""From names and arguments to environments; everything that cannot work is refused with the key and the way out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from asyncrl.config.checks.check import check
from asyncrl.config.environment import EnvironmentConfig
from asyncrl.config.load import load, to_yaml
from asyncrl.environments.resolve import environment_rows, make
from asyncrl.errors import ConfigError

FAULTS = "tests.support.faults.environment_faults"
OWN = """
from asyncrl.environments.base import Step

class Own:
    def __init__(self, size=1):
        self.size = size
    async def reset(self, row): ...
    async def step(self, action):
        return Step(done=True)
"""


def test_a_file_and_a_module_are_found_and_take_their_arguments(tmp_path: Path) -> None:
    file = tmp_path / "math.py"  # the name of a module of Python's own
    file.write_text(OWN)
    own: Any = make(EnvironmentConfig(f"{file}:Own", {"size": 3}))
    assert own.size == 3
    assert make(EnvironmentConfig(f"{FAULTS}:NeedsArguments", {"size": 1})) is not None


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        (
            "nothing",
            {},
            r"unknown class \'nothing\'; use reasoning_gym:TASK, verifiers:TASKSET, openenv:URL, module:class",
        ),
        ("no.such.module:X", {}, "cannot import 'no.such.module'"),
        ("no/such/file.py:X", {}, "there is no file .*no/such/file.py"),
        (f"{FAULTS}:Nobody", {}, "has no 'Nobody'"),
        (f"{FAULTS}:NotAsync", {}, "needs `async def reset`"),
        (f"{FAULTS}:NeedsArguments", {}, "environment: .* missing 1 required positional argument: 'size'"),
        (f"{FAULTS}:NeedsArguments", {"size": 0}, "environment.args={'size': 0} failed: AssertionError"),
        (f"{FAULTS}:NeedsArguments", {"length": 1}, "unexpected keyword argument 'length'"),
    ],
)
def test_what_cannot_be_made_is_refused(name: str, args: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(EnvironmentConfig(name, args))


def test_a_file_with_a_syntax_error_is_named_each_time(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text("class Own(:")
    for _ in range(2):
        with pytest.raises(ConfigError, match=f"{file} does not import: SyntaxError"):
            make(EnvironmentConfig(f"{file}:Own"))


def test_an_environment_brings_rows_of_its_own() -> None:
    config = EnvironmentConfig(f"{FAULTS}:NeedsArguments", {"size": 1})
    assert environment_rows(config, "test", 5) == [("test 5", "1")]


@pytest.mark.parametrize(
    ("name", "message"),
    [(None, "data.train=environment needs environment.name"), (f"{FAULTS}:Faulty", r"no method `rows\(split, seed\)`")],
)
def test_rows_are_asked_of_an_environment_that_has_them(name: str | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        environment_rows(EnvironmentConfig(name), "train", 0)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("none", "it gave none"),
        ("numbers", r"row 1 is \('1\+1', 2\)"),
        ("singles", "row 0 is '1'"),
        ("raises", r"rows\('train', 0\) failed: KeyError\('no data'\)"),
        ("nothing", r"failed: TypeError"),
    ],
)
def test_rows_that_cannot_be_prompts_are_refused_by_their_number(rows: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"data.train=environment: .*{message}"):
        environment_rows(EnvironmentConfig(f"{FAULTS}:BringsRows", {"kind": rows}), "train", 0)


NAMED = f"environment.name={FAULTS}:Faulty"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["environment.max_turns=3"], "environment: its keys have no effect without environment.name"),
        ([NAMED, "reward.terms=[{function: math}]"], f"reward: {FAULTS}:Faulty scores its episodes itself"),
        ([NAMED, "reward.num_workers=2"], "reward: .* leave reward.terms, reward.num_workers"),
        (["algorithm.credit=turn"], "algorithm.credit=turn needs turns, which environment.name brings"),
        ([NAMED, "algorithm.credit=turn", "algorithm.advantage=pass_at_k"], "the best of k is of whole episodes"),
        ([NAMED, "environment.max_turns=0"], "environment.max_turns=0 must be above 0"),
        ([NAMED, "environment.time_limit_s=0"], "environment.time_limit_s=0.0 must be above 0"),
        (
            [NAMED, "generator.max_tokens=8", "environment.max_turn_tokens=9"],
            "environment.max_turn_tokens=9 is above generator.max_tokens=8",
        ),
    ],
)
def test_keys_that_contradict_each_other_are_refused(overrides: list[str], message: str) -> None:
    config = load(None, ["model.path=tiny", "data.train=environment", *overrides])
    with pytest.raises(ConfigError, match=message):
        check(config, "cpu")


def test_arguments_are_free_and_read_back_as_they_were(tmp_path: Path) -> None:
    overrides = ["model.path=tiny", "data.train=environment", NAMED, "environment.args={size: 3, nested: {words: [a]}}"]
    config = load(None, overrides)
    assert config.environment.args == {"size": 3, "nested": {"words": ["a"]}}
    assert check(config, "cpu") == []
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config))
    assert load(file) == config
    with pytest.raises(ConfigError, match=r"environment\.args"):
        load(None, ["model.path=tiny", "data.train=environment", "environment.args=3"])
