"""An environment that fails in every way a user's can; the action says how."""

import asyncio
import math
import os
import signal
import sys
import time
from pathlib import Path

from asyncrl.environments.base import Action, Row, Step


class Faulty:
    """Echoes what was said, and how often it was spoken to. The action `done` pays 1, any other 0.25."""

    def __init__(self, greeting: str | None = None) -> None:
        self._greeting = greeting
        self._num_steps = 0

    def __len__(self) -> int:
        return 0  # an object that is false is an environment too

    async def reset(self, row: Row) -> str | None:
        if row.prompt == "raises":
            raise KeyError("no such task")
        return self._greeting

    async def step(self, action: Action) -> Step:
        self._num_steps += 1
        answer = await fault(action.text)
        if answer is not None:
            return answer  # type: ignore[return-value]
        if action.text == "done":
            return Step(reward=1.0, done=True)
        return Step(f"{self._num_steps}:{action.text}", reward=0.25)


async def fault(action: str) -> object:
    match action:
        case "raises":
            raise KeyError("no such tool")
        case "exits":
            sys.exit(3)
        case "kills its process":
            os._exit(7)
        case "awaits":
            await asyncio.sleep(100)
        case "loops":
            while True:
                pass
        case "blocks signals":
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
            time.sleep(100)
        case "returns text":
            return "x"
        case "returns 3e38":
            return Step("x", reward=3e38)
        case "returns 1e39":
            return Step("x", reward=1e39)
        case "returns a NaN reward":
            return Step("x", reward=math.nan)
        case "returns no observation":
            return Step()
        case "returns an empty observation":
            return Step("")
        case "returns half a character":
            return Step("\ud800")
        case "returns odd messages":
            return Step([{"role": "tool"}])
        case "returns an unknown role":
            return Step([{"role": "human", "content": "x"}])
        case "returns a message":
            return Step([{"role": "user", "content": "x"}])
        case "returns no token":
            return Step([10**9])
    return None


class CountsItself(Faulty):
    """Says how many of it were made in its process."""

    num_made = 0

    def __init__(self) -> None:
        super().__init__()
        CountsItself.num_made += 1

    async def step(self, action: Action) -> Step:
        return Step(f"{CountsItself.num_made} made")


class Forgetful(Faulty):
    """Answers with what no second life of it answers."""

    async def step(self, action: Action) -> Step:
        answer = await super().step(action)
        return answer if answer.done else Step(f"process {os.getpid()}")


class NeedsArguments:
    def __init__(self, size: int) -> None:
        assert size > 0

    async def reset(self, row: Row) -> None: ...

    async def step(self, action: Action) -> Step:
        return Step(done=True)

    def rows(self, split: str, seed: int) -> list[tuple[str, str]]:
        return [(f"{split} {seed}", "1")]


class BringsRows(Faulty):
    """Rows of each wrong kind."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self._kind = kind

    def rows(self, split: str, seed: int) -> object:
        match self._kind:
            case "none":
                return []
            case "numbers":
                return [("1+1", "2"), ("1+1", 2)]
            case "singles":
                return ["1"]
            case "raises":
                raise KeyError("no data")
        return None


class Closes(Faulty):
    """Writes a line to the file when it is closed, and fails then if it is told to."""

    def __init__(self, file: str, fails: bool = False) -> None:
        super().__init__()
        self._file = Path(file)
        self._fails = fails

    async def close(self) -> None:
        with self._file.open("a") as file:
            file.write(f"after {self._num_steps} steps\n")
        if self._fails:
            raise OSError("gone")


class NotAsync:
    def reset(self, row: Row) -> None: ...

    def step(self, action: Action) -> Step:
        return Step(done=True)
