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

REASONING_GYM = "reasoning_gym:"


def resolve(name: str) -> Callable[..., Environment]:
    """The class of that name.

    Raises:
        ConfigError: it cannot be imported, or has no coroutines `reset` and `step`; reasoning-gym is not installed.
    """
    if name.startswith(REASONING_GYM):
        import_module(
            "environment.name", name, "reasoning_gym", "install the extra: pip install 'asyncrl[environments]'"
        )
        from asyncrl.environments.reasoning_gym import ReasoningGym

        return partial(ReasoningGym, name.removeprefix(REASONING_GYM))
    found: Callable[..., Environment] = import_attribute("environment.name", name, "class", "reasoning_gym:TASK")
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
    found = rows(split, seed)
    if not found or not all(isinstance(text, str) and text for row in found for text in row):
        raise ConfigError(f"{key}: {config.name}.rows must give (prompt, answer) pairs of text, none of them empty")
    return [(prompt, answer) for prompt, answer in found]
