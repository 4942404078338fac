"""All checks in their order, and how they are run: one that fails does not keep the next from running."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from asyncrl.errors import AsyncrlError, DeadlineError, RoleDiedError, SelftestError
from asyncrl.selftest.checks.engine import (
    bad_requests,
    cancelled_requests,
    checksums,
    closing,
    completions,
    deaths,
    kernels,
    labels,
    logprobs,
    memory,
    mixed_requests,
    prefix_cache,
    sampling,
    seeds,
)
from asyncrl.selftest.checks.system import devices, gather, links, stall, training, versions
from asyncrl.selftest.result import Check, NotHereError, Result
from asyncrl.selftest.system import System

SERVING_CHECKS = [
    kernels.CHECK,
    logprobs.CHECK,
    completions.CHECK,
    sampling.CHECK,
    seeds.CHECK,
    mixed_requests.CHECK,
    bad_requests.CHECK,
    cancelled_requests.CHECK,
    labels.CHECK,
    prefix_cache.CHECK,
    checksums.CHECK,
]
_ENDING = [memory.CHECK, deaths.CHECK, closing.CHECK]

ENGINE_CHECKS = [*SERVING_CHECKS, *_ENDING]
"""What any engine has to pass: `asyncrl selftest --engine`."""

CHECKS = [
    *[versions.CHECK, devices.CHECK, links.CHECK, gather.CHECK],
    *SERVING_CHECKS,
    *[stall.CHECK, training.CHECK],
    *_ENDING,
]


def run_checks(system: System, checks: Sequence[Check], begins: Callable[[str], None]) -> Iterator[Result]:
    """Each as it ends. After one in which a process died or never answered, the rest are skipped.

    Args:
        begins: is told the name of each before it runs.
    """
    broken: Result | None = None
    for check in checks:
        if broken is not None:
            yield Result(check.name, "skipped", 0.0, reason=f"a process was lost in the check of {broken.check}")
            continue
        begins(check.name)
        result, was_lost = _run(check, system)
        broken = result if was_lost else None
        yield result


def _run(check: Check, system: System) -> tuple[Result, bool]:
    """What became of it, and whether a process was lost."""
    start_s = time.perf_counter()

    def failed(reason: str) -> Result:
        return Result(check.name, "failed", time.perf_counter() - start_s, reason=reason, advice=check.advice)

    try:
        figures = check.run(system)
    except NotHereError as reason:
        return Result(check.name, "skipped", time.perf_counter() - start_s, reason=str(reason)), False
    except SelftestError as error:
        return failed(str(error)), False
    except (DeadlineError, RoleDiedError) as error:
        return failed(str(error)), True
    except (AsyncrlError, RuntimeError, ValueError, OSError, IndexError, KeyError, AssertionError) as error:
        return failed(f"{type(error).__name__}: {error}"), False
    return Result(check.name, "passed", time.perf_counter() - start_s, figures), False
