"""Which engine the generators run: vLLM, SGLang, or one of the user's own (see `base.py`)."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from asyncrl.config.schema import SGLANG, VLLM, GeneratorConfig
from asyncrl.config.user_code import import_attribute
from asyncrl.errors import ConfigError
from asyncrl.generate.engines.base import Engine, EngineSpec

EngineClass = Callable[[EngineSpec, GeneratorConfig], Engine]


def engine_class(name: str) -> EngineClass:
    """The class that `generator.engine` names.

    Raises:
        ConfigError: it cannot be imported, or a part of `Engine` is missing or is called otherwise.
    """
    if name == VLLM:
        from asyncrl.generate.engines.vllm import VllmEngine  # takes seconds

        return VllmEngine
    if name == SGLANG:
        from asyncrl.generate.engines.sglang.engine import SglangEngine  # so does this

        return SglangEngine
    found: EngineClass = import_attribute("generator.engine", name, "Class", f"{VLLM}, {SGLANG}")
    missing = [part for part in vars(Engine) if not part.startswith("_") and not hasattr(found, part)]
    if missing:
        raise ConfigError(f"generator.engine: {name!r} lacks {', '.join(missing)} of the Protocol Engine")
    for part in filter(inspect.isfunction, vars(Engine).values()):
        if not part.__name__.startswith("_"):
            _require_same_call(name, part, getattr(found, part.__name__))
    return found


def _require_same_call(name: str, part: Callable[..., Any], own: Callable[..., Any]) -> None:
    """
    Raises:
        ConfigError: the engine's method is not awaited as the Protocol's is, or does not take its arguments.
    """
    if inspect.iscoroutinefunction(part) != inspect.iscoroutinefunction(own):
        must = "must" if inspect.iscoroutinefunction(part) else "must not"
        raise ConfigError(f"generator.engine: {name!r}: {part.__name__} {must} be `async def`")
    arguments = inspect.signature(part).parameters
    try:
        inspect.signature(own).bind(*arguments)
    except TypeError as error:
        raise ConfigError(
            f"generator.engine: {name!r}: {part.__name__} is called with ({', '.join(arguments)}): {error}"
        ) from error
