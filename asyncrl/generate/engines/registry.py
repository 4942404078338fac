"""Which engine the generators run: vLLM, SGLang, or one of the user's own (see `base.py`)."""

from __future__ import annotations

from collections.abc import Callable

from asyncrl.config.schema import SGLANG, VLLM, GeneratorConfig
from asyncrl.config.user_code import import_attribute
from asyncrl.errors import ConfigError
from asyncrl.generate.engines.base import Engine, EngineSpec

EngineClass = Callable[[EngineSpec, GeneratorConfig], Engine]


def engine_class(name: str) -> EngineClass:
    """The class that `generator.engine` names.

    Raises:
        ConfigError: it cannot be imported, or lacks a part of `Engine`.
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
    return found
