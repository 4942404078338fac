"""A checkpoint of an adapter as a peft folder, or merged into the model that it began from. One plain process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from asyncrl.config.lora import LoraConfig
from asyncrl.config.schema import ModelConfig
from asyncrl.errors import DataError
from asyncrl.learn.checkpoint import read_weights, write_hf
from asyncrl.learn.policy.adapter import NAME, add_adapter, merged_parameters
from asyncrl.learn.policy.model import load_causal_lm_config


def export_adapter(directory: Path, model: ModelConfig, lora: LoraConfig, out: Path) -> None:
    """Writes adapter_config.json and adapter_model.safetensors, as peft and vLLM load them.

    Raises:
        DataError: no checkpoint, one of another model, or `model` cannot be loaded.
    """
    hf, config = _trained(directory, model, lora)
    out.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"base_model.model.{name}".replace(f".{NAME}.", "."): parameter.detach().contiguous()
        for name, parameter in hf.named_parameters()
        if parameter.requires_grad
    }
    save_file(tensors, out / "adapter_model.safetensors", metadata={"format": "pt"})
    config.inference_mode = True
    config.save_pretrained(out)


def export_merged(directory: Path, model: ModelConfig, lora: LoraConfig, out: Path) -> None:
    """Writes a Hugging Face folder, as `export_hf` does. Arguments and errors as in `export_adapter`."""
    trained, _ = _trained(directory, model, lora)
    config = load_causal_lm_config(model.path, trust_remote_code=model.trust_remote_code)
    hf = AutoModelForCausalLM.from_config(
        config, dtype=config.dtype or torch.float32, trust_remote_code=model.trust_remote_code
    )
    hf.load_state_dict(dict(merged_parameters(trained)), strict=False)  # a tied head is there as the embedding
    write_hf(hf, model.path, out, trust_remote_code=model.trust_remote_code)


def _trained(directory: Path, model: ModelConfig, lora: LoraConfig) -> tuple[PreTrainedModel, Any]:
    """The model, float32, with the checkpoint's adapter; and peft's configuration."""
    try:
        hf = AutoModelForCausalLM.from_pretrained(
            model.path, dtype=torch.float32, trust_remote_code=model.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise DataError(f"model.path={model.path!r} cannot be loaded: {str(error).splitlines()[0]}") from error
    config = add_adapter(hf, lora)
    adapter = {name: parameter.data for name, parameter in hf.named_parameters() if parameter.requires_grad}
    read_weights(directory, {"model": adapter})
    return hf, config
