"""Runs a scenario in a process of its own, where it may fork a real vLLM engine."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from bench.support.generators import DEADLINE_S, fresh_context


def run_fresh(scenario: Callable[..., Any], *args: Any) -> Any:
    """scenario(*args) in a new process; its result or its exception."""
    with ProcessPoolExecutor(1, mp_context=fresh_context()) as pool:
        return pool.submit(scenario, *args).result(DEADLINE_S)
