"""FSDP2 shards → whole tensors on learner rank 0. Done before any generator is paused."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.distributed.tensor import DTensor


def gather(parameters: Iterable[tuple[str, torch.Tensor]], dtype: torch.dtype, keep: bool) -> dict[str, torch.Tensor]:
    """Every parameter, whole, in `dtype`, in host memory: complete when this returns.

    A collective: all ranks call it with the same parameters in the same order. Shards are cast before they travel. An
    accelerator holds at most two whole parameters: one is copied to pinned memory while the next is gathered.

    Args:
        parameters: Hugging Face name → DTensor (any placement) or plain tensor.
        keep: True on the rank that sends; the others get an empty dict.
    """
    whole: dict[str, torch.Tensor] = {}
    for name, parameter in parameters:
        tensor = parameter.detach().to(dtype)
        if isinstance(tensor, DTensor):
            tensor = tensor.full_tensor()
        if keep:
            # A copy: a world of one would hand out the live parameter, which the next step changes.
            on_accelerator = tensor.device.type != "cpu"
            whole[name] = torch.empty(tensor.shape, dtype=dtype, pin_memory=on_accelerator)
            whole[name].copy_(tensor, non_blocking=on_accelerator)
    if torch.accelerator.is_available():
        torch.accelerator.current_stream().synchronize()
    return whole


def metas(parameters: Iterable[tuple[str, torch.Tensor]], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """What `gather` will bring, as meta tensors. Local."""
    return {name: torch.empty(parameter.shape, dtype=dtype, device="meta") for name, parameter in parameters}
