"""Accelerators: what torch, Ray, NVIDIA's driver and their environment variables call them. The one module that knows.

Elsewhere a run is on `cpu` or on `gpu`, as `cluster.device` says it, and weights travel over what
`publish.transport` names.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

TORCH_TYPE = "cuda"
"""torch's name of the device type. A build for ROCm has the same."""
RAY_RESOURCE = "GPU"
NCCL_INTERFACE = "NCCL_SOCKET_IFNAME"
VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"
"""Empty = torch and vLLM see none."""

LEAST_DRIVER = {12: 525, 13: 580}
"""By the major version of CUDA that torch was built for: NVIDIA's first driver that runs it (CUDA Toolkit release
notes, minor version compatibility)."""

_DRIVER_FILE = Path("/sys/module/nvidia/version")
_OTHERS = {
    "ROCm (AMD)": (Path("/dev/kfd"), "rocm-smi"),
    "CANN (Ascend)": (Path("/dev/davinci_manager"), "npu-smi"),
}
"""By their names: a file of the driver, and its tool."""


@dataclass(frozen=True)
class Accelerator:
    """One device as torch sees it."""

    name: str
    total_bytes: int


def torch_type(on_gpu: bool) -> str:
    """torch's device type of a role that runs on a GPU or not."""
    return TORCH_TYPE if on_gpu else "cpu"


def backend(on_gpu: bool) -> str:
    """torch.distributed's backend of the learner ranks."""
    return f"cpu:gloo,{TORCH_TYPE}:nccl" if on_gpu else "gloo"


def is_accelerator(device_type: str) -> bool:
    return device_type == TORCH_TYPE


def is_ampere_or_later(device: torch.device) -> bool:
    """Whether it is a GPU of NVIDIA's of this generation or a later one."""
    import torch

    if device.type != TORCH_TYPE or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


def is_hopper(device: torch.device) -> bool:
    """Whether it is a GPU of NVIDIA's of this generation, the only one that flash-attn 3 runs on."""
    import torch

    return is_ampere_or_later(device) and torch.cuda.get_device_capability(device)[0] == 9


def count() -> int:
    """Devices that torch sees on this machine."""
    if version("torch").endswith("+cpu"):
        return 0
    import torch  # takes a second

    return torch.cuda.device_count()


def accelerators() -> list[Accelerator]:
    import torch

    found = [torch.cuda.get_device_properties(index) for index in range(count())]
    return [Accelerator(one.name, one.total_memory) for one in found]


def memory_bytes(device: torch.device | None = None) -> int | None:
    """Of this device, or of the first one; None = there is none, or it is the CPU."""
    import torch

    if device is not None and device.type != TORCH_TYPE:
        return None
    if not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_properties(0 if device is None else device).total_memory


def used_bytes() -> int:
    """Of the first device, by all processes on it."""
    import torch

    free, total = torch.cuda.mem_get_info(0)
    return total - free


def peak_bytes() -> int:
    """Most that torch held on the current device in this process, since `forget_peak`."""
    import torch

    return torch.cuda.max_memory_reserved()


def forget_peak() -> None:
    import torch

    torch.cuda.reset_peak_memory_stats()


def random_state() -> Any:
    """Of the current device's random numbers."""
    import torch

    return torch.cuda.get_rng_state()


def set_random_state(state: Any) -> None:
    """As `random_state` gave it."""
    import torch

    torch.cuda.set_rng_state(state)


def toolkit() -> str:
    """What torch was built for, such as `CUDA 13.0`, `ROCm 6.4` or `CPU`."""
    import torch

    if torch.version.hip is not None:
        return f"ROCm {torch.version.hip}"
    return "CPU" if torch.version.cuda is None else f"CUDA {torch.version.cuda}"


def driver() -> str | None:
    """Version of NVIDIA's driver; None = it is not loaded."""
    return _DRIVER_FILE.read_text().strip() if _DRIVER_FILE.is_file() else None


def driver_problem(toolkit_name: str, driver_version: str | None) -> str | None:
    """Why this driver does not run what torch was built for; None = it does, or there is nothing to run.

    Args:
        toolkit_name: as `toolkit` gives it.
        driver_version: as `driver` gives it.
    """
    kind, _, number = toolkit_name.partition(" ")
    if kind != "CUDA":
        return None
    least = LEAST_DRIVER.get(int(number.partition(".")[0]))
    if driver_version is None:
        return f"torch is built for {toolkit_name}, and NVIDIA's driver is not loaded"
    if least is not None and int(driver_version.partition(".")[0]) < least:
        return (
            f"torch is built for {toolkit_name}, which needs NVIDIA's driver {least} or later; here is {driver_version}"
        )
    return None


def unsupported() -> str | None:
    """Another maker's accelerator on this machine, on which asyncrl has never run; None = there is none."""
    return next((name for name, (file, tool) in _OTHERS.items() if file.exists() or shutil.which(tool)), None)
