"""The product from which logits come, in half precision rounded or not."""

from __future__ import annotations

import torch
from torch import Tensor

from asyncrl import devices


def product(left: Tensor, right: Tensor, bias: Tensor | None, in_float32: bool) -> Tensor:
    """left @ right + bias, [v, H], [H, t] and [v], in float32; a tensor of its own.

    Args:
        in_float32: half-precision factors are multiplied exactly and added up in float32, as vLLM does with a head in
            float32; else the sums are rounded to their type, as vLLM does by itself.
    """
    is_exact = in_float32 and left.dtype != torch.float32
    logits = _exact_product(left, right) if is_exact else left @ right
    return (logits if bias is None else logits.add_(bias[:, None])).float()


def _exact_product(left: Tensor, right: Tensor) -> Tensor:
    if devices.is_accelerator(left.device.type):
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()
