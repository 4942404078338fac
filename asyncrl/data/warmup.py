"""Supervised warm-up of the tiny model: a stand-in for pretraining, without which rewards are too sparse."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

_LR = 1e-3
_IGNORED = -100
"""cross_entropy's ignore_index: prompt and padding carry no loss."""


def warm_up(
    model: Any,
    tokenizer: Any,
    rows: Sequence[tuple[str, str]],
    num_steps: int,
    batch_size: int,
    seed: int,
) -> None:
    """Trains `model` in place for `num_steps` AdamW steps on prompt → answer + EOS, the loss on the latter alone.

    Rows longer than the model's `max_position_embeddings` are cut there.
    """
    prompts = tokenizer([prompt for prompt, _ in rows])["input_ids"]
    answers = tokenizer([answer for _, answer in rows])["input_ids"]
    max_length = model.config.max_position_embeddings
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LR, weight_decay=0.0)
    model.train()
    for chosen in _batches(len(rows), num_steps, batch_size, seed):
        sequences = [(prompts[i], [*answers[i], tokenizer.eos_token_id]) for i in chosen]
        input_ids, labels = _pad(sequences, tokenizer.pad_token_id, max_length)
        logits = model(input_ids=input_ids, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=_IGNORED
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def _batches(num_rows: int, num_steps: int, batch_size: int, seed: int) -> Iterator[list[int]]:
    """Row numbers of each step's batch, drawn with replacement."""
    generator = np.random.default_rng(seed)
    for _ in range(num_steps):
        yield generator.integers(num_rows, size=batch_size).tolist()


def _pad(
    sequences: Sequence[tuple[list[int], list[int]]], pad_token_id: int, max_length: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(input_ids, labels), each [N, L] int64, padded on the right, where causal attention never sees the padding."""
    length = min(max_length, max(len(prompt) + len(answer) for prompt, answer in sequences))
    input_ids = torch.full((len(sequences), length), pad_token_id)
    labels = torch.full((len(sequences), length), _IGNORED)
    for row, (prompt, answer) in enumerate(sequences):
        tokens = torch.tensor([*prompt, *answer])[:length]
        input_ids[row, : len(tokens)] = tokens
        labels[row, len(prompt) : len(tokens)] = tokens[len(prompt) :]
    return input_ids, labels
