"""Tiny random models on disk, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV2Config,
    LlamaConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from asyncrl.data.tiny_tokenizer import build_tokenizer

FAMILIES: dict[str, type[PretrainedConfig]] = {
    "llama": LlamaConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "qwen3_moe": Qwen3MoeConfig,
    "deepseek_v2": DeepseekV2Config,
}
OWN_SIZES: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64},
    "deepseek_v2": {  # multi-head latent attention, and experts in the second layer
        "num_key_value_heads": 4,
        "q_lora_rank": 32,
        "kv_lora_rank": 512,  # with 64 of rotation the only size that vLLM's CPU kernel takes
        "qk_rope_head_dim": 64,
        "qk_nope_head_dim": 32,
        "v_head_dim": 32,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
    },
}


def random_model(folder: Path, family: str, *, tied: bool, seed: int = 0) -> Path:
    """A two-layer model over digits, saved with its tokenizer. Qwen2 has biases, Qwen3 norms of queries and keys."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer([("0123456789+=", "0123456789")], max_length=64)
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64 if family == "qwen3" else 128,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,  # the smallest that vLLM's CPU attention takes
        "max_position_embeddings": 64,
        "tie_word_embeddings": tied,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = FAMILIES[family](**sizes | OWN_SIZES.get(family, {}))
    model = AutoModelForCausalLM.from_config(config).float()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def random_qwen3(folder: Path, *, tied: bool, seed: int = 0) -> Path:
    return random_model(folder, "qwen3", tied=tied, seed=seed)
