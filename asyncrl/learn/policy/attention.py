"""Which attention a model's layers compute with, and in which type."""

from __future__ import annotations

import torch
from transformers import PretrainedConfig
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

from asyncrl import devices
from asyncrl.config.schema import ModelConfig
from asyncrl.errors import ConfigError
from asyncrl.learn.policy import row_attention, varlen_attention


def compute_dtype(model: ModelConfig, device_type: str) -> torch.dtype:
    """`model.dtype` with auto resolved: bfloat16 on GPU, float32 on CPU."""
    if model.dtype == "auto":
        return torch.float32 if device_type == "cpu" else torch.bfloat16
    return torch.float32 if model.dtype == "float32" else torch.bfloat16


def attention_of(model: ModelConfig, config: PretrainedConfig, device_type: str) -> str:
    """transformers' name of the attention to use.

    Raises:
        ConfigError: an attention is asked for that would compute something else than the model, or cannot run here.
    """
    # sdpa leaves a soft cap of the attention scores out, without a word, and the engine does not.
    is_capped = getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None
    if model.attention in ("sdpa", row_attention.NAME, varlen_attention.NAME) and is_capped:
        raise ConfigError(
            f"model.attention={model.attention} with model.path={model.path!r}, whose attn_logit_softcapping it would "
            "leave out; set model.attention=auto and learner.context_parallel=1"
        )
    if model.attention == varlen_attention.NAME:
        _require_varlen(model, config, device_type)
    if model.attention != "auto":
        return model.attention
    half = compute_dtype(model, device_type) != torch.float32  # flash attention has no float32 kernels
    packs = _mixes_tokens_in_attention_alone(config)
    if devices.is_accelerator(device_type) and half and packs:
        if is_flash_attn_3_available() and devices.is_hopper(torch.device(device_type)):
            return "flash_attention_3"
        if is_flash_attn_2_available():
            return "flash_attention_2"
    if half and packs and not is_capped and varlen_attention.runs_on(torch.device(device_type), _head_dim(config)):
        return varlen_attention.NAME
    return "eager" if is_capped else "sdpa"


def attends_to_all(config: PretrainedConfig) -> bool:
    """No layer has a window, whose mask transformers would make itself."""
    has_window = getattr(config.get_text_config(), "sliding_window", None) is not None
    return not has_window and set(_layer_types(config)) <= {"full_attention"}


def _require_varlen(model: ModelConfig, config: PretrainedConfig, device_type: str) -> None:
    """What `asyncrl_varlen` needs, and with it learner.context_parallel."""
    asked = f"model.attention={varlen_attention.NAME} (which learner.context_parallel above 1 takes)"
    if not _mixes_tokens_in_attention_alone(config):
        others = sorted(set(_layer_types(config)) - _ATTENTIONS)
        raise ConfigError(
            f"{asked} with model.path={model.path!r}: layers of kind {', '.join(others)} would mix a row's sequences; "
            "set model.attention=sdpa and learner.context_parallel=1"
        )
    if not devices.is_accelerator(device_type):
        return
    is_half = compute_dtype(model, device_type) != torch.float32
    if not (is_half and varlen_attention.runs_on(torch.device(device_type), _head_dim(config))):
        raise ConfigError(
            f"{asked} needs an NVIDIA GPU from Ampere on, model.dtype=bfloat16 and heads of at most 256; set "
            "model.attention=auto and learner.context_parallel=1"
        )


_ATTENTIONS = {"full_attention", "sliding_attention"}


def _mixes_tokens_in_attention_alone(config: PretrainedConfig) -> bool:
    """Else convolutions or recurrences would run on from one packed sequence into the next."""
    return set(_layer_types(config)) <= _ATTENTIONS


def _layer_types(config: PretrainedConfig) -> list[str]:
    return getattr(config.get_text_config(), "layer_types", None) or []


def _head_dim(config: PretrainedConfig) -> int:
    text = config.get_text_config()
    return getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
