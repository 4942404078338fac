"""Operations that a step asks of a model, and the part of a device's peak that they are: model FLOPs utilisation (MFU).

PaLM's convention (arXiv 2204.02311, appendix B): what training needs counts, once. What gradient checkpointing computes
again does not, nor do padding, norms and the optimizer. A weight takes 6 operations a token (2 forward, 4 backward).
Embedding a token is a lookup and takes none; the output head is a product. PaLM counts attention to all tokens of a
sequence, here the half that a causal mask leaves counts:

    6·L·(2·h·d·(H + K) + 3·h·i)·Σℓ + 6·V·h·T + 12·L·H·d·Σℓ²/2

Legend: L layers, h hidden size, i intermediate size, H heads, K of keys and values, d head size, V vocabulary; ℓ tokens
of each sequence, T tokens that are predicted.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import Qwen3Config

from asyncrl.simulate.accelerators import ACCELERATORS


def model_flops(config: Qwen3Config, lengths: Sequence[int], num_predicted: int) -> float:
    """Of the forward and backward pass over sequences of these lengths in tokens, `num_predicted` of them in all."""
    h, d, heads = config.hidden_size, config.head_dim, config.num_attention_heads
    of_attention = 2 * h * d * (heads + config.num_key_value_heads)
    of_layers = config.num_hidden_layers * (of_attention + 3 * h * config.intermediate_size)
    of_head = config.vocab_size * h
    scores = sum(length**2 for length in lengths) / 2
    products = 6.0 * (of_layers * sum(lengths) + of_head * num_predicted)
    return products + 12.0 * config.num_hidden_layers * heads * d * scores


def peak_flop_per_s(device_name: str) -> float | None:
    """By the data sheets in `asyncrl/simulate/accelerators.py`; None = this device is not among them.

    Args:
        device_name: as torch gives it, such as `NVIDIA H100 80GB HBM3`.
    """
    name = device_name.lower().replace(" ", "")
    if "pcie" in name or "nvl" in name:  # slower than the SXM boards, which are in the table
        return None
    return next((peak.flop_per_s for known, peak in ACCELERATORS.items() if known != "cpu" and known in name), None)
