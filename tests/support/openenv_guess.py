"""A server of OpenEnv: guess a digit from hints."""

from __future__ import annotations

import random
import threading
import time
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


def secret_of(seed: int | None) -> int:
    return random.Random(seed).randrange(10)


class Guessing(Environment[Guess, Hint, State]):
    SUPPORTS_CONCURRENT_SESSIONS = True

    def reset(self, seed: int | None = None, episode_id: str | None = None, **kwargs: Any) -> Hint:
        self._secret = secret_of(seed)
        return Hint()

    def step(self, action: Guess, timeout_s: float | None = None, **kwargs: Any) -> Hint:
        if not (len(action.text) == 1 and action.text.isdecimal()):
            return Hint(reward=0.0, done=True)
        if int(action.text) == self._secret:
            return Hint(reward=1.0, done=True)
        return Hint(hint=">" if int(action.text) < self._secret else "<")

    @property
    def state(self) -> State:
        return State()


@contextmanager
def serve(max_sessions: int = 100) -> Iterator[str]:
    """The URL of a server in a thread of this process."""
    app = create_fastapi_app(Guessing, Guess, Hint, max_concurrent_envs=max_sessions)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
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
