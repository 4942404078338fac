"""A LoRA adapter as tensors that travel, and what a layer computes with it. Pure.

base     NAME.weight         [out, in]
adapter  NAME.lora_A.weight  [r, in]
         NAME.lora_B.weight  [out, r], with alpha/rank in it
merged   base + B·A, computed in float32, of the base's type
"""

from __future__ import annotations

import torch

from asyncrl.publish.plan import Region

_SUFFIXES = (".lora_A.weight", ".lora_B.weight")


def adapter_names(weight: str) -> tuple[str, str]:
    """Of A and B of a weight."""
    layer = weight.removesuffix(".weight")
    return layer + _SUFFIXES[0], layer + _SUFFIXES[1]


def is_adapter(name: str) -> bool:
    return name.endswith(_SUFFIXES)


def merged(base: torch.Tensor, lora_a: torch.Tensor, lora_b: torch.Tensor) -> torch.Tensor:
    """base + B·A in base's type: plain tensors, or DTensors of which A is replicated."""
    return torch.addmm(base.float(), lora_b.float(), lora_a.float()).to(base.dtype)


def merged_part(part: torch.Tensor, region: Region, lora_a: torch.Tensor, lora_b: torch.Tensor) -> torch.Tensor:
    """`merged`, of a region of the base alone.

    Args:
        part: the base's elements there, in the shape of the region.
        region: of [out, in].
    """
    num_columns = lora_a.shape[1]
    row, column = divmod(region.offset, num_columns)
    if region.stride == (num_columns, 1) and column + region.shape[1] <= num_columns:
        rows, columns = region.shape
        return merged(part, lora_a[:, column : column + columns], lora_b[row : row + rows])
    change = region.view(lora_b.float() @ lora_a.float())
    return (part.float() + change).to(part.dtype)
