"""Reward functions of the caller's as names that a reward process can import."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from asyncrl.config.schema import Config, RewardTerm
from asyncrl.errors import ConfigError


def with_rewards(config: Config, functions: Sequence[Callable[..., Any]]) -> Config:
    """The configuration with these functions in place of `reward.terms`, each with weight 1; as it is without any.

    Raises:
        ConfigError: as `reward_name`.
    """
    if not functions:
        return config
    terms = [RewardTerm(reward_name(function)) for function in functions]
    return replace(config, reward=replace(config.reward, terms=terms))


def reward_name(function: Callable[..., Any]) -> str:
    """`module:function`, or `path/to/file.py:function` for a script or a module outside of any package.

    Raises:
        ConfigError: another process could not import it: a lambda, a closure, a method, or a function of a notebook.
    """
    module_name = getattr(function, "__module__", None)
    name = getattr(function, "__qualname__", repr(function))
    module = sys.modules.get(module_name or "")
    if getattr(module, name, None) is not function:
        raise ConfigError(
            f"rewards: {name} cannot be imported by the processes that score; "
            "give a function that is defined at the top level of a file"
        )
    assert module_name is not None
    if "." in module_name:
        return f"{module_name}:{name}"
    file = getattr(module, "__file__", None)
    if file is None:
        raise ConfigError(
            f"rewards: {name} is defined in no file, so the processes that score cannot import it; write it into one "
            "(in a notebook: %%writefile my_rewards.py) and import it from there"
        )
    return f"{Path(file).resolve()}:{name}"
