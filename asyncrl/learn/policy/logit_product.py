"""The product from which logits come, in half precision rounded or not."""

from __future__ import annotations

import torch
from torch import Tensor

from asyncrl import devices


def product(left: Tensor, right: Tensor, in_float32: bool) -> Tensor:
    """left @ right, [v, H] and [H, t], in float32.

    Args:
        in_float32: half-precision factors are multiplied exactly and added up in float32, as vLLM does with a head in
            float32; else the sums are rounded to their type, as vLLM does by itself.
    """
    if not in_float32 or left.dtype == torch.float32:
        return (left @ right).float()
    if devices.is_accelerator(left.device.type):
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()
