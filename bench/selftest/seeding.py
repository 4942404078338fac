"""How a bug is seeded: beside the sound function, and switched on in this process and in those that it has forked."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from inspect import iscoroutinefunction
from typing import Any

from asyncrl.generate.engines.registry import engine_class

NONE = -1

_active = multiprocessing.RawValue("i", NONE)
"""Number of the mutant that is switched on."""

Patch = tuple[Any, str, Callable[..., Any]]
"""Where, what, and what is called instead: it gets what was there as its first argument."""


@dataclass(frozen=True)
class Mutant:
    """One bug."""

    name: str
    check: str
    """That has to find it."""
    patches: Callable[[Any], list[Patch]]
    """For the engine's class; empty = it cannot be seeded there."""


MUTANTS: list[Mutant] = []


def mutant(name: str, check: str) -> Callable[[Callable[[Any], list[Patch]]], None]:
    return lambda patches: MUTANTS.append(Mutant(name, check, patches))


@contextmanager
def installed(engine: str) -> Iterator[list[Mutant]]:
    """All mutants that can be seeded in this engine, none switched on."""
    kind = engine_class(engine)
    found = []
    with ExitStack() as stack:
        for number, one in enumerate(MUTANTS):
            patches = one.patches(kind)
            for owner, name, instead in patches:
                stack.callback(setattr, owner, name, getattr(owner, name))
                setattr(owner, name, _switchable(number, getattr(owner, name), instead))
            if patches:
                found.append(one)
        yield found


@contextmanager
def switched_on(one: Mutant) -> Iterator[None]:
    _active.value = MUTANTS.index(one)
    try:
        yield
    finally:
        _active.value = NONE


def _switchable(number: int, original: Callable[..., Any], instead: Callable[..., Any]) -> Callable[..., Any]:
    def choose(*args: Any, **kwargs: Any) -> Any:
        if _active.value == number:
            return instead(original, *args, **kwargs)
        return original(*args, **kwargs)

    async def choose_async(*args: Any, **kwargs: Any) -> Any:
        return await choose(*args, **kwargs)

    return choose_async if iscoroutinefunction(original) else choose
