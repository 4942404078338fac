"""A measurement in a process of its own, so that what it held is freed with it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import TypeVar

CONTEXT = multiprocessing.get_context("spawn")
TIMEOUT_S = 1800.0

Result = TypeVar("Result")


def in_process(function: Callable[..., Result], *arguments: object) -> Result:
    """Its result.

    Raises:
        EOFError: the process died; it has said why.
    """
    receiver, sender = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_call, args=(sender, function, arguments))
    process.start()
    sender.close()
    if not receiver.poll(TIMEOUT_S):
        process.kill()
        raise SystemExit(f"{function.__name__} did not end within {TIMEOUT_S:.0f} s")
    result: Result = receiver.recv()
    process.join()
    return result


def _call(sender: Connection, function: Callable[..., object], arguments: tuple[object, ...]) -> None:
    sender.send(function(*arguments))
