"""Random Qwen3 models of a real shape, made on the spot."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, Qwen3Config


def qwen3_config(num_layers: int, vocab_size: int, **sizes: int) -> Qwen3Config:
    """28 layers and 151,936 rows of the vocabulary are Qwen3-0.6B; `sizes` are those in which another one differs."""
    of_06b = {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
    }
    return Qwen3Config(
        vocab_size=vocab_size, num_hidden_layers=num_layers, tie_word_embeddings=True, **{**of_06b, **sizes}
    )


SHAPES = {
    "tiny": qwen3_config(
        2,
        1024,
        hidden_size=128,
        intermediate_size=384,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
    ),
    "0.6b": qwen3_config(28, 151_936),
    "4b": qwen3_config(36, 151_936, hidden_size=2560, intermediate_size=9728, num_attention_heads=32),
}
"""By the names of Qwen3's sizes; `tiny` is none of them."""


def save_model(config: Qwen3Config, dtype: torch.dtype, folder: Path) -> None:
    AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(folder)
