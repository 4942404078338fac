"""How many logits are held at once, `logprob.py`. Apart from it, so that an estimate needs no torch."""

from __future__ import annotations

CPU_CHUNK_BYTES = 2**28
"""For V = 151,936 that is 147 tokens, enough rows to keep the matrix product efficient."""
GPU_CHUNK_SHARE = 64
"""A GPU takes this part of its memory: products of few rows would wait for the head's weights to be read."""
BYTES_PER_LOGIT = 12
"""Three float32 values at the peak: the logit, its probability, and the slope of a soft cap."""


def chunk_bytes(gpu_bytes: int | None) -> int:
    """What the logits of one chunk may take, with all that is computed from them.

    Args:
        gpu_bytes: memory of the device; None on the CPU.
    """
    return CPU_CHUNK_BYTES if gpu_bytes is None else gpu_bytes // GPU_CHUNK_SHARE
