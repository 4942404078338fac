"""Random Qwen3 models as wide as the 0.6B one, made on the spot."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, Qwen3Config


def qwen3_config(num_layers: int, vocab_size: int) -> Qwen3Config:
    """28 layers and 151,936 rows of the vocabulary are Qwen3-0.6B."""
    return Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=num_layers,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
    )


def save_model(config: Qwen3Config, dtype: torch.dtype, folder: Path) -> None:
    AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(folder)
