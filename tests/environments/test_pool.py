"""The environment pool with real processes: what goes wrong in one episode stays there."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from asyncrl.config.environment import EnvironmentConfig
from asyncrl.environments.base import Action, Row, Step
from asyncrl.environments.pool import EnvironmentPool, Episode, EpisodeFailedError

FAULTY = "tests.support.faults.environment_faults:Faulty"
ROW = Row(3, "say something", "x", 5)


@pytest.fixture
def open_pool() -> Iterator[Any]:
    opened: list[EnvironmentPool] = []

    def open_one(name: str = FAULTY, num_workers: int = 1, time_limit_s: float = 60.0, **args: Any) -> EnvironmentPool:
        config = EnvironmentConfig(name, args, time_limit_s=time_limit_s, num_workers=num_workers)
        opened.append(EnvironmentPool(config))
        return opened[-1]

    yield open_one
    for pool in opened:
        pool.close()


async def say(episode: Episode, text: str) -> Step:
    return await episode.step(Action(text, [1]))


def test_an_episode_keeps_its_state_from_turn_to_turn_beside_others(open_pool: Any) -> None:
    pool = open_pool(num_workers=2, greeting="hello")

    async def play(number: int) -> list[Step]:
        with pool.episode(f"{number}", ROW) as episode:
            assert await episode.reset() == "hello"
            steps = [await say(episode, f"{number}") for _ in range(3)]
            return [*steps, await say(episode, "done")]

    async def play_all() -> list[list[Step]]:
        return await asyncio.gather(*map(play, range(20)))

    for number, steps in enumerate(asyncio.run(play_all())):
        turns = [Step(f"{turn}:{number}", 0.25) for turn in (1, 2, 3)]
        assert steps == [*turns, Step(reward=1.0, done=True)]


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        ("raises", "KeyError: 'no such tool'"),
        ("exits", "SystemExit: 3"),
        ("kills its process", "exit code 7"),
        ("awaits", "took longer than environment.time_limit_s = 0.5 s"),
        ("loops", "took longer than environment.time_limit_s = 0.5 s"),
        ("blocks signals", "ignored environment.time_limit_s = 0.5 s; its process was killed"),
        ("returns text", "step returned 'x', not a Step"),
        ("returns a NaN reward", "the reward is nan, not a finite number"),
        ("returns 1e39", r"the reward, 1e\+39, is beyond float32 \(±3.4e\+38\); scale it down"),
        ("returns no observation", "the observation None is neither text"),
        ("returns an empty observation", "the observation '' is neither text"),
        ("returns half a character", "surrogates not allowed"),
        ("returns odd messages", "the observation .* is neither text"),
        ("returns an unknown role", "unknown role 'human'; use one of system, developer, user"),
    ],
)
def test_an_environment_that_fails_ends_its_episode_and_those_beside_it_go_on(
    open_pool: Any, action: str, reason: str
) -> None:
    pool = open_pool(time_limit_s=0.5)

    async def play() -> None:
        with pool.episode("beside", ROW) as beside, pool.episode("failing", ROW) as failing:
            assert await beside.reset() is None
            assert await say(beside, "one") == Step("1:one", 0.25)
            await failing.reset()
            with pytest.raises(EpisodeFailedError, match=reason):
                await say(failing, action)
            assert await say(beside, "two") == Step("2:two", 0.25)
            assert await say(beside, "done") == Step(reward=1.0, done=True)

    asyncio.run(play())


def test_an_environment_that_cannot_begin_says_why(open_pool: Any) -> None:
    async def play() -> None:
        with (
            open_pool().episode("1", Row(0, "raises", "", 0)) as episode,
            pytest.raises(EpisodeFailedError, match="KeyError: 'no such task'"),
        ):
            await episode.reset()

    asyncio.run(play())


def test_an_episode_that_plays_otherwise_when_it_is_played_again_fails_and_does_not_mix_two_lives(
    open_pool: Any,
) -> None:
    pool = open_pool("tests.support.faults.environment_faults:Forgetful")

    async def play() -> None:
        with pool.episode("beside", ROW) as beside, pool.episode("failing", ROW) as failing:
            await beside.reset()
            await say(beside, "one")
            with pytest.raises(EpisodeFailedError, match="exit code 7"):
                await say(failing, "kills its process")
            with pytest.raises(EpisodeFailedError, match="not deterministic"):
                await say(beside, "two")

    asyncio.run(play())


def test_a_process_killed_between_two_turns_is_replaced(open_pool: Any) -> None:
    pool = open_pool()

    async def play() -> None:
        with pool.episode("1", ROW) as episode:
            await episode.reset()
            await say(episode, "one")
            for child in psutil.Process(os.getpid()).children():
                if "spawn_main" in " ".join(child.cmdline()):
                    child.kill()
            assert await say(episode, "two") == Step("2:two", 0.25)

    asyncio.run(play())


def test_an_episode_stays_in_the_object_that_began_it(open_pool: Any) -> None:
    pool = open_pool("tests.support.faults.environment_faults:CountsItself")

    async def play() -> None:
        with pool.episode("1", ROW) as episode:
            await episode.reset()
            assert [(await say(episode, "x")).observation for _ in range(3)] == ["2 made"] * 3  # one of them by `start`

    asyncio.run(play())


def test_an_episode_that_is_given_up_leaves_nothing_in_its_process(open_pool: Any) -> None:
    pool = open_pool()

    async def play() -> None:
        for _ in range(2):
            with pool.episode("the same name", ROW) as episode:
                await episode.reset()
                assert await say(episode, "one") == Step("1:one", 0.25)

    asyncio.run(play())


@pytest.mark.parametrize("fails", [False, True])
def test_an_environment_is_closed_once_however_its_episode_ends(open_pool: Any, tmp_path: Path, fails: bool) -> None:
    file = tmp_path / "closed"
    pool = open_pool("tests.support.faults.environment_faults:Closes", file=str(file), fails=fails)

    async def play() -> None:
        with pool.episode("done", ROW) as episode:
            await episode.reset()
            assert (await say(episode, "done")).reward == 1.0
        with pool.episode("given up", ROW) as episode:
            await episode.reset()
            await say(episode, "one")
            await say(episode, "two")
        with pool.episode("failed", ROW) as episode:
            await episode.reset()
            with pytest.raises(EpisodeFailedError, match="no such tool"):
                await say(episode, "raises")
        with pool.episode("last", ROW) as episode:
            await episode.reset()

    asyncio.run(play())
    assert file.read_text().startswith("after 1 steps\nafter 2 steps\nafter 1 steps\n")  # the last one's is to come
