"""Environments of other packages behind the Protocol: their own parts, played to the end in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asyncrl.config.environment import EnvironmentConfig
from asyncrl.environments.base import Action, Observation, Row, Step
from asyncrl.environments.resolve import environment_rows, make
from asyncrl.errors import ConfigError

DOUBLING = f"verifiers:{Path(__file__).parents[2] / 'examples' / 'verifiers_doubling.py'}"
pytestmark = pytest.mark.filterwarnings("ignore:connect.. must be used:DeprecationWarning")  # OpenEnv's client


async def play(name: str, args: dict[str, Any], row: Row, *actions: str) -> list[Observation | Step | None]:
    """What the episode begins with, and its steps."""
    environment: Any = make(EnvironmentConfig(name, args))
    try:
        opening = await environment.reset(row)
        return [opening, *[await environment.step(Action(action, [])) for action in actions]]
    finally:
        await environment.close()


@pytest.fixture(scope="module")
def in_one_loop() -> Iterator[Any]:
    """Runs a coroutine in the loop of all of them, as an environment's process does."""
    with asyncio.Runner() as runner:
        yield runner.run


class TestVerifiers:
    @pytest.fixture(autouse=True)
    def installed(self) -> None:
        pytest.importorskip("verifiers", reason="the extra `verifiers` is not installed")

    def test_of_each_ten_tasks_one_is_held_out_and_not_always_the_same(self) -> None:
        config = EnvironmentConfig(DOUBLING)
        train, test = environment_rows(config, "train", 0), environment_rows(config, "test", 0)
        held_out = sorted(int(number) for _, number in test)
        assert [number // 10 for number in held_out] == list(range(90))
        assert {number % 10 for number in held_out} == set(range(10)), "all digits end both a task and one held out"
        assert sorted(held_out + [int(number) for _, number in train]) == list(range(900))
        assert ("150+150=", "50") in train + test
        assert dict(environment_rows(config, "warmup", 0)) == {prompt: f"{2 * int(prompt[:3])}" for prompt, _ in train}

    def test_an_episode_is_a_rollout_whose_turns_are_the_harness_s_requests(self, in_one_loop: Any) -> None:
        row = Row(0, "115+115=", "15", 0)
        again = [{"role": "user", "content": "no:"}]
        assert in_one_loop(play(DOUBLING, {}, row, "230")) == [None, Step(reward=1.0, done=True)]
        assert in_one_loop(play(DOUBLING, {}, row, "1", "230")) == [None, Step(again), Step(reward=0.5, done=True)]
        assert in_one_loop(play(DOUBLING, {"messages": False}, row, "1", "2")) == [
            None,
            Step("no:"),
            Step(reward=0.0, done=True),
        ]

    def test_the_task_s_prompt_stands_where_the_row_has_another(self, in_one_loop: Any) -> None:
        (opening,) = in_one_loop(play(DOUBLING, {}, Row(0, "?", "5", 0)))
        assert opening == [{"role": "user", "content": "105+105="}]

    def test_many_rollouts_play_at_once_and_one_that_is_given_up_ends(self, in_one_loop: Any) -> None:
        async def play_all() -> list[Any]:
            given_up = play(DOUBLING, {}, Row(0, "100+100=", "0", 0), "1")
            whole = [play(DOUBLING, {}, Row(0, "", f"{n}", 0), "1", f"{200 + 2 * n}") for n in range(8)]
            _, *ends = await asyncio.gather(given_up, *whole)
            assert [task.get_name() for task in asyncio.all_tasks() if "run_episode" in repr(task)] == []
            return ends

        assert [end[-1] for end in in_one_loop(play_all())] == [Step(reward=0.5, done=True)] * 8

    def test_a_row_that_is_no_task_is_refused(self, in_one_loop: Any) -> None:
        with pytest.raises(ValueError, match="'x', is no task's number"):
            in_one_loop(play(DOUBLING, {}, Row(0, "", "x", 0)))

    @pytest.mark.parametrize(
        ("name", "args", "message"),
        [
            ("verifiers:nothing", {}, "taskset 'nothing' not found"),
            (DOUBLING, {"agents": {}}, "agents"),
            ("verifiers:no/file.py", {}, "there is no file .*no/file.py"),
        ],
    )
    def test_a_taskset_that_cannot_be_loaded_is_refused(self, name: str, args: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            make(EnvironmentConfig(name, args))


class TestOpenEnv:
    @pytest.fixture(scope="class")
    @classmethod
    def url(cls) -> Iterator[str]:
        pytest.importorskip("openenv", reason="the extra `openenv` is not installed")
        from tests.support.openenv_guess import serve

        with serve(max_sessions=2) as url:
            yield url

    def test_an_episode_is_a_session_of_the_server(self, url: str, in_one_loop: Any) -> None:
        from tests.support.openenv_guess import secret_of

        row = Row(0, "guess:", ".", seed=2**40 + 3)
        secret = secret_of(row.seed % 2**31)
        below = Step(">" if secret else "<")
        args = {"action": "text", "observation": "hint", "messages": False}
        for _ in range(3):  # more than the server has room for, one after another
            steps = in_one_loop(play(f"openenv:{url}", args, row, "0" if secret else "1", f"{secret}"))
            assert steps == [None, below, Step(reward=1.0, done=True)]

    def test_without_a_field_the_whole_observation_is_shown_as_a_message(self, url: str, in_one_loop: Any) -> None:
        (opening,) = in_one_loop(play(f"openenv:{url}", {"action": "text"}, Row(0, "guess:", ".", 3)))
        assert opening == [{"role": "user", "content": 'guess:{"hint": ""}'}]

    def test_a_field_that_the_server_does_not_have_is_named(self, url: str, in_one_loop: Any) -> None:
        row = Row(0, "guess:", ".", 3)
        with pytest.raises(ValueError, match="refused an action with the field move"):
            in_one_loop(play(f"openenv:{url}", {"action": "move"}, row, "1"))
        with pytest.raises(KeyError, match=r"environment\.args\.observation=x: the observation has the fields hint"):
            in_one_loop(play(f"openenv:{url}", {"action": "text", "observation": "x"}, row))

    def test_rows_need_the_prompt_and_all_have_it(self, url: str) -> None:
        config = EnvironmentConfig(f"openenv:{url}", {"action": "text", "prompt": "guess:"})
        assert environment_rows(config, "test", 0) == [("guess:", ".")] * 100
        with pytest.raises(ConfigError, match=r"environment.args.prompt"):
            environment_rows(EnvironmentConfig(f"openenv:{url}", {"action": "text"}), "train", 0)

    @pytest.mark.usefixtures("url")
    def test_a_server_that_is_not_there_is_to_be_started(self, in_one_loop: Any) -> None:
        with pytest.raises(ConnectionError, match=r"start the server, or mend the URL of environment\.name"):
            in_one_loop(play("openenv:http://127.0.0.1:9", {"action": "text"}, Row(0, "guess:", ".", 3)))
