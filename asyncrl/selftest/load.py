"""Requests that are always in flight, so that a publish meets some of them in their middle."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from types import TracebackType

from asyncrl.selftest.system import Part, Sampled, System, wait

NUM_REQUESTS = 16
PROMPT_TOKENS = 8
NUM_TRIES = 5
"""Publishes, until one has met a request in its middle."""


class Load:
    """A context manager: each request that ends is followed by another while the block runs."""

    def __init__(self, system: System, generator: Part) -> None:
        self._system = system
        self._generator = generator
        self._lock = threading.Lock()
        self._requests: list[tuple[list[int], Future]] = []
        self._ended = threading.Event()
        """One request at least has ended."""
        self._stopped = False

    def __enter__(self) -> Load:
        for _ in range(NUM_REQUESTS):
            self._submit()
        if not self._ended.wait(self._system.config.replay.lease_timeout_s):
            wait(self._requests[0][1], 0.0, f"completions of {self._generator.name}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped = True

    def sampled(self) -> list[Sampled]:
        """Everything that was asked for, after the block."""
        limit_s = self._system.config.replay.lease_timeout_s
        with self._lock:
            requests = list(self._requests)
        what = f"completions of {self._generator.name} that a publish met"
        return [Sampled(prompt, wait(future, limit_s, what)) for prompt, future in requests]

    def _submit(self) -> None:
        with self._lock:
            if self._stopped:
                return
            number = len(self._requests)
            prompt = self._system.prompt(seed=1000 + number, num_tokens=PROMPT_TOKENS)
            future = self._system.submit(self._generator, prompt, self._system.sampling(1, seed=number))
            self._requests.append((prompt, future))
        future.add_done_callback(self._follow)

    def _follow(self, future: Future) -> None:
        self._ended.set()
        if future.exception() is None:
            self._submit()
