"""What SGLang 0.5.23 imports on a CPU without AMX and PyPI does not have for one: stand-ins, for CPU alone.

    sgl_kernel    PyPI has its CUDA builds only. Without AMX SGLang computes with torch; of sgl_kernel it calls one
                  function, which fills a table. Any other name is an error when it is called.
    torchvision   PyPI has it for CUDA only. SGLang imports it for models that see. Nothing here does.

Neither is put where another import could find it: they are modules of this process and its forks.

Expiry: when PyPI has CPU builds of both (SGLang 0.5.23 names none).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch

_VISION = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")


@contextmanager
def stand_ins() -> Iterator[None]:
    """Import SGLang inside. Afterwards torchvision is not there again, as transformers goes by whether it is."""
    from transformers.utils import is_torchvision_available

    if is_torchvision_available():  # it remembers the answer, so the stand-in does not change it
        raise ImportError("torchvision is installed beside a CPU torch, which it does not fit")
    kernel = _module("sgl_kernel")
    kernel.assign_req_to_token_pool_cpu = assign_req_to_token_pool  # type: ignore[attr-defined]
    kernel.__getattr__ = _missing  # type: ignore[method-assign]
    for name in _VISION:
        _module(name).InterpolationMode = None  # type: ignore[attr-defined]
    transforms = sys.modules["torchvision.transforms"]
    sys.modules["torchvision"].transforms = transforms  # type: ignore[attr-defined]
    transforms.functional = sys.modules["torchvision.transforms.functional"]  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for name in _VISION:
            del sys.modules[name]


def assign_req_to_token_pool(
    rows: torch.Tensor,
    table: torch.Tensor,
    starts: torch.Tensor,
    ends: torch.Tensor,
    places: torch.Tensor,
    row_length: int,
) -> None:
    """table[row, start:end] = the next end − start of `places`, for each request.

    Args:
        rows: int [requests].
        table: int [rows, row_length], written to.
        starts: int [requests].
        ends: int [requests].
        places: int [Σ(end − start)].
        row_length: of the table; not needed here.
    """
    first = 0
    for row, start, end in zip(rows.tolist(), starts.tolist(), ends.tolist(), strict=True):
        table[row, start:end] = places[first : first + end - start].to(table.dtype)
        first += end - start


def _module(name: str) -> ModuleType:
    module = ModuleType(name, "A stand-in of asyncrl's, see asyncrl/generate/engines/sglang/missing_packages.py.")
    module.__spec__ = ModuleSpec(name, loader=None, is_package=True)
    module.__path__ = []
    sys.modules[name] = module
    return module


def _missing(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)

    def not_here(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"sgl_kernel.{name} is not there on a CPU (asyncrl's stand-in)")

    return not_here
