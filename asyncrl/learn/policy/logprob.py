"""Log-probabilities and entropies of chosen tokens without ever holding all logits.

Legend: T tokens, H hidden size, V vocabulary size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

MAX_CHUNK_LOGITS = 2**25
"""Logits that exist at once: 128 MiB in float32, and the backward pass holds about four tensors of that size. For
V = 151,936 that is 220 tokens, enough rows to keep the matrix product efficient."""


def token_logprobs(hidden: Tensor, head: nn.Linear, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-softmax at the targets and entropy, chunk by chunk; the backward pass recomputes each chunk's logits.

    The logits are divided by the temperature first, because the engine reports log μ after that division.

    Args:
        hidden: [T, H], the decoder's output at the positions that predict the targets.
        head: the output embedding, [T, H] → [T, V].
        targets: [T] int64.
        temperature: > 0.

    Returns:
        logprobs [T] and entropy [T] (nats), float32 whatever the compute type.
    """
    chunk_size = max(1, MAX_CHUNK_LOGITS // head.out_features)
    chunks = [
        checkpoint(_chunk, part, head, target, temperature, use_reentrant=False, preserve_rng_state=False)
        for part, target in zip(hidden.split(chunk_size), targets.split(chunk_size), strict=True)
    ]
    logprobs, entropies = zip(*chunks, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)


def _chunk(hidden: Tensor, head: nn.Linear, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logits = head(hidden).float() / temperature
    logprobs = logits.log_softmax(-1)
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    return logprobs.gather(-1, targets[:, None]).squeeze(-1), entropy
