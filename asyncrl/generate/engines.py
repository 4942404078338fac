"""Which engine the generators run: vLLM, or one of the user's own (see `engine.py`)."""

from __future__ import annotations

from collections.abc import Callable

from asyncrl.config import VLLM, GeneratorConfig
from asyncrl.errors import ConfigError
from asyncrl.extension import import_attribute
from asyncrl.generate.engine import Engine, EngineSpec

EngineClass = Callable[[EngineSpec, GeneratorConfig], Engine]


def engine_class(name: str) -> EngineClass:
    """What `generator.engine` names.

    Raises:
        ConfigError: it cannot be imported, or lacks a part of `Engine`.
    """
    if name == VLLM:
        from asyncrl.generate.vllm_engine import VllmEngine  # takes seconds

        return VllmEngine
    found: EngineClass = import_attribute("generator.engine", name, "Class", VLLM)
    missing = [part for part in vars(Engine) if not part.startswith("_") and not hasattr(found, part)]
    if missing:
        raise ConfigError(f"generator.engine: {name!r} lacks {', '.join(missing)} of asyncrl.generate.engine.Engine")
    return found
