"""Tiny random models on disk, for tests."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, Qwen2Config, Qwen3Config, Qwen3MoeConfig

from asyncrl.data.tiny_tokenizer import build_tokenizer

FAMILIES: dict[str, type[PretrainedConfig]] = {
    "llama": LlamaConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "qwen3_moe": Qwen3MoeConfig,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}


def random_model(folder: Path, family: str, *, tied: bool, seed: int = 0) -> Path:
    """A two-layer model over digits, saved with its tokenizer. Qwen2 has biases, Qwen3 norms of queries and keys."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer([("0123456789+=", "0123456789")], max_length=64)
    config = FAMILIES[family](
        vocab_size=len(tokenizer),
        hidden_size=64 if family == "qwen3" else 128,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,  # the smallest that vLLM's CPU attention takes
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **(EXPERTS if family == "qwen3_moe" else {}),
    )
    model = AutoModelForCausalLM.from_config(config).float()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def random_qwen3(folder: Path, *, tied: bool, seed: int = 0) -> Path:
    return random_model(folder, "qwen3", tied=tied, seed=seed)
