"""A server of OpenEnv: guess a digit from hints."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from openenv.core.env_server import Action, Environment, Observation, State
from openenv.core.env_server.http_server import create_fastapi_app


class Guess(Action):
    text: str


class Hint(Observation):
    hint: str = ""


class Hold:
    """Keeps one session, the next to be played once `begin` was called, from being answered until `end`.

    It counts the sessions of each seed, hence of each group.
    """

    def __init__(self) -> None:
        self.num_begun: Counter[int] = Counter()
        self.num_ended: Counter[int] = Counter()
        self.seed = -1
        """Of the session that is held; −1 = none so far."""
        self._next = threading.Lock()
        self._next.acquire()
        self._ended = threading.Event()

    def begin(self) -> None:
        self._next.release()

    def end(self) -> None:
        self._ended.set()

    def wait_if_it_is_this(self, seed: int) -> None:
        if self._next.acquire(blocking=False):
            self.seed = seed
            assert self._ended.wait(60), "the session was held for good"


def secret_of(seed: int | None) -> int:
    return random.Random(seed).randrange(10)


class Guessing(Environment[Guess, Hint, State]):
    SUPPORTS_CONCURRENT_SESSIONS = True
    hold = Hold()

    def reset(self, seed: int | None = None, episode_id: str | None = None, **kwargs: Any) -> Hint:
        self._seed = seed or 0
        self._secret = secret_of(seed)
        self.hold.num_begun[self._seed] += 1
        return Hint()

    def step(self, action: Guess, timeout_s: float | None = None, **kwargs: Any) -> Hint:
        self.hold.wait_if_it_is_this(self._seed)
        hint = self._answer(action.text)
        self.hold.num_ended[self._seed] += hint.done
        return hint

    def _answer(self, guess: str) -> Hint:
        if not (len(guess) == 1 and guess.isdecimal()):
            return Hint(reward=0.0, done=True)
        if int(guess) == self._secret:
            return Hint(reward=1.0, done=True)
        return Hint(hint=">" if int(guess) < self._secret else "<")

    @property
    def state(self) -> State:
        return State()


@contextmanager
def serve(max_sessions: int = 100, hold: Hold | None = None) -> Iterator[str]:
    """The URL of a server in a thread of this process."""
    Guessing.hold = hold or Hold()
    app = create_fastapi_app(Guessing, Guess, Hint, max_concurrent_envs=max_sessions)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started:
        assert time.monotonic() < deadline, "the server does not start"
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
