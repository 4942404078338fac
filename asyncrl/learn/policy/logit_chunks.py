"""How many logits are held at once, `logprob.py`. Apart from it, so that an estimate needs no torch."""

from __future__ import annotations

CPU_CHUNK_BYTES = 2**23
"""Little enough for a processor's cache, where passes over logits cost little beside their products."""
CPU_CHUNK_TOKENS = 1024
GPU_CHUNK_SHARE = 64
"""A GPU takes this part of its memory, and all tokens at once."""
LEAST_COLUMNS = 128
"""Of the vocabulary; products of fewer are slow."""
BYTES_PER_LOGIT = 12
"""Three float32 values at the peak: the logit, its probability, and the slope of a soft cap."""


def chunk_bytes(gpu_bytes: int | None) -> int:
    """What the logits of one chunk may take, with all that is computed from them.

    Args:
        gpu_bytes: memory of the device; None on the CPU.
    """
    return CPU_CHUNK_BYTES if gpu_bytes is None else gpu_bytes // GPU_CHUNK_SHARE


def chunk_shape(num_tokens: int, gpu_bytes: int | None) -> tuple[int, int]:
    """Tokens and columns of the vocabulary of a chunk."""
    tokens = min(num_tokens, CPU_CHUNK_TOKENS) if gpu_bytes is None else num_tokens
    return tokens, max(LEAST_COLUMNS, chunk_bytes(gpu_bytes) // (BYTES_PER_LOGIT * tokens))
