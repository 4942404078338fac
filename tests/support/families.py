"""Tiny random models of the families that differ in what they do around the decoder: heads, caps, scales, ties."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    PhiConfig,
    PretrainedConfig,
    Qwen3MoeConfig,
)

SIZES = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES: dict[str, tuple[type[PretrainedConfig], dict[str, object]]] = {
    "llama tied": (LlamaConfig, {"tie_word_embeddings": True}),
    "llama untied": (LlamaConfig, {"tie_word_embeddings": False}),
    "mistral": (MistralConfig, {"sliding_window": 4}),
    "phi, whose head has a bias": (PhiConfig, {"num_key_value_heads": 2}),
    "gemma2, soft cap": (
        Gemma2Config,
        {"final_logit_softcapping": 2.0, "attn_logit_softcapping": 1.0, "query_pre_attn_scalar": 16},
    ),
    "gemma3": (Gemma3TextConfig, {"query_pre_attn_scalar": 16}),
    "cohere, logit_scale": (CohereConfig, {"logit_scale": 0.25}),
    "granite, logits_scaling": (GraniteConfig, {"logits_scaling": 3.0}),
    "qwen3 moe": (Qwen3MoeConfig, {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}),
}


def save_family(folder: Path, family: str, **changes: object) -> str:
    config_class, settings = FAMILIES[family]
    return save_random(folder, config_class(**(SIZES | settings | changes)))


def save_random(folder: Path, config: PretrainedConfig) -> str:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    model.save_pretrained(folder)
    return str(folder)
