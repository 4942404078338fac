"""Reward functions that fail in every way a user's function can; the completion says how."""

import math
import os
import re
import signal
import sys
import time


def fault(prompt: str, completion: str, answer: str) -> float:
    if completion == "raises":
        raise KeyError("no such key")
    if completion == "exits":
        sys.exit(3)
    if completion == "kills its process":
        os._exit(7)
    if completion == "returns text":
        return "x"  # type: ignore[return-value]
    if completion == "returns NaN":
        return math.nan
    if completion == "returns 1e39":
        return 1e39
    if completion == "loops":
        while True:
            pass
    if completion == "swallows and loops":
        while True:
            try:
                time.sleep(100)
            except Exception:  # noqa: BLE001  the fault itself
                continue
    if completion == "a" * 40:  # the text of a model against an expression that tries 2^40 ways
        re.fullmatch(r"(a+)+b", completion)
    if completion == "sleeps":
        time.sleep(100)
    if completion == "blocks signals":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
        time.sleep(100)
    return float(len(completion))


def half(prompt: str, completion: str, answer: str) -> float:
    return 0.5


def signs_and_sleeps(prompt: str, completion: str, answer: str) -> float:
    """Adds the prompt to the file that the answer names, then never returns."""
    with open(answer, "a") as file:
        file.write(prompt)
    time.sleep(100)
    return 0.0


def imports_slowly(completion: str) -> float:
    import tests.support.faults.slow_import as slow  # takes longer than the time limit

    return float(slow.LENGTHS[completion])
