"""From `environment.name` and `environment.args` to environments."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from asyncrl.config.environment import EnvironmentConfig
from asyncrl.config.user_code import import_attribute, import_module
from asyncrl.environments.base import Environment
from asyncrl.errors import ConfigError

Rows = list[tuple[str, str]]

ADAPTERS = {
    "reasoning_gym": ("environments", "reasoning_gym", "asyncrl.environments.adapters.reasoning_gym:ReasoningGym"),
    "verifiers": ("verifiers", "verifiers.v1", "asyncrl.environments.adapters.verifiers:Verifiers"),
    "openenv": ("openenv", "openenv.core", "asyncrl.environments.adapters.openenv:OpenEnv"),
}
"""What may stand before the colon → the extra and its package, and the class that is given what stands after it."""

_KINDS = "reasoning_gym:TASK, verifiers:TASKSET, openenv:URL"


def resolve(name: str) -> Callable[..., Environment]:
    """The class of that name.

    Raises:
        ConfigError: it cannot be imported, has no coroutines `reset` and `step`, or needs a package that is missing.
    """
    kind, _, rest = name.partition(":")
    if kind in ADAPTERS:
        extra, package, adapter = ADAPTERS[kind]
        import_module("environment.name", name, package, f"install the extra: pip install 'asyncrl[{extra}]'")
        return partial(import_attribute("environment.name", adapter, "class", ""), rest)
    found: Callable[..., Environment] = import_attribute("environment.name", name, "class", _KINDS)
    for method in ("reset", "step"):
        if not inspect.iscoroutinefunction(getattr(found, method, None)):
            raise ConfigError(f"environment.name: {name!r} needs `async def {method}`; see docs/environments.md")
    return found


def make(config: EnvironmentConfig) -> Environment:
    """An environment as the configuration says.

    Raises:
        ConfigError: as in `resolve`, or the class refuses environment.args.
    """
    assert config.name is not None
    found = resolve(config.name)
    try:
        return found(**config.args)
    except Exception as error:  # a user's class may raise anything
        raise ConfigError(
            f"environment: {config.name} with environment.args={config.args} failed: {error!r}"
        ) from error


def environment_rows(config: EnvironmentConfig, split: Literal["train", "test", "warmup"], seed: int) -> Rows:
    """(prompt, answer) rows of `data.train=environment`: what the environment's own `rows(split, seed)` gives.

    Args:
        split: `warmup` asks for what model.path=tiny is warmed up on.

    Raises:
        ConfigError: as in `make`; no environment is configured, or it has no usable rows.
    """
    key = "data.eval=environment" if split == "test" else "data.train=environment"
    if config.name is None:
        raise ConfigError(f"{key} needs environment.name")
    rows: Any = getattr(make(config), "rows", None)
    if rows is None:
        raise ConfigError(f"{key}: {config.name} has no method `rows(split, seed)`; name a data file instead")
    try:
        found = list(rows(split, seed))
    except Exception as error:  # a user's method may raise anything
        raise ConfigError(f"{key}: {config.name}.rows({split!r}, {seed}) failed: {error!r}") from error
    wrong = [number for number, row in enumerate(found) if not _is_pair(row)]
    if wrong or not found:
        what = f"row {wrong[0]} is {found[wrong[0]]!r:.200}" if wrong else "it gave none"
        raise ConfigError(
            f"{key}: {config.name}.rows({split!r}, {seed}) must give (prompt, answer) pairs of text, none of them "
            f"empty; {what}"
        )
    return [(prompt, answer) for prompt, answer in found]


def _is_pair(row: Any) -> bool:
    return isinstance(row, tuple | list) and len(row) == 2 and all(isinstance(text, str) and text for text in row)
