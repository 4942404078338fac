"""FSDP2 shards → whole tensors on learner rank 0. Done before any generator is paused."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.distributed.tensor import DTensor


def gather(
    parameters: Iterable[tuple[str, torch.Tensor]], dtype: torch.dtype, device: torch.device, keep: bool
) -> dict[str, torch.Tensor]:
    """Every parameter, whole, in `dtype` on `device`.

    A collective: all ranks call it with the same parameters in the same order. Shards are cast before they travel.

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
            # Without the clone a world of one would hand out the live parameter, which the next step changes.
            whole[name] = tensor.to(device, copy=True)
    return whole


def metas(parameters: Iterable[tuple[str, torch.Tensor]], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """What `gather` will bring, as meta tensors. Local."""
    return {name: torch.empty(parameter.shape, dtype=dtype, device="meta") for name, parameter in parameters}
