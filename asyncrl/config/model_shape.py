"""A model's shape from its config.json alone: what the checks and the memory estimate need, without its weights.

Parameters are counted on a model built on torch's meta device, so the counts are exact and cost no memory. torch and
transformers are imported when a shape is read, not before: that takes four seconds, and a tiny model's is known.
"""

from __future__ import annotations

import json
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from asyncrl.errors import ConfigError, DataError

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

HUB_TIMEOUT_S = 5.0
"""transformers retries an unreachable hub for half a minute; a check should answer at once."""
ENOUGH = "give model.path as a Hugging Face folder; for a check, one with a config.json is enough"


class LinearLayer(NamedTuple):
    """A linear layer of the decoder."""

    name: str
    """The last part of its name, such as `q_proj`."""
    num_inputs: int
    num_outputs: int


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder-only transformer."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    """Longest sequence, prompt and completion together, in tokens."""
    num_parameters: int
    """All of them; a tied embedding counts once."""
    num_layer_parameters: int
    """Those of one decoder layer, the largest."""
    num_replicated_parameters: int
    """Those that tensor parallelism does not cut: norms, and the routers of experts."""
    linear_layers: tuple[LinearLayer, ...] = ()
    """Those that can have an adapter."""
    has_latent_attention: bool = False

    @property
    def num_root_parameters(self) -> int:
        """Those outside the layers: embedding, output head, last norm."""
        return self.num_parameters - self.num_layers * self.num_layer_parameters

    def kv_bytes_per_token(self, tensor_parallel: int, bytes_per_value: int) -> int:
        """Of one worker, keys and values of all layers: 2·L·max(1, K/k)·d·c."""
        return 2 * self.num_layers * max(1, self.num_kv_heads // tensor_parallel) * self.head_dim * bytes_per_value


def read_model_shape(path: str, trust_remote_code: bool = False) -> ModelShape:
    """The shape of a model in a local folder, the local hub cache, or on the hub (one request of a few seconds).

    Raises:
        DataError: the model cannot be reached; says which folder or hub name was tried and what would do.
        ConfigError: it is there and cannot be trained here; weights are looked at in a local folder alone.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from asyncrl.config.linear_layers import linear_layers
    from asyncrl.config.logit_transform import read_logit_transform
    from asyncrl.config.weight_files import check_weight_files

    config = read_model_config(path, trust_remote_code)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except ValueError as error:
        raise DataError(f"model.path={path}: not a causal language model: {error}") from error
    read_logit_transform(model, path)
    if Path(path).is_dir():
        check_weight_files(Path(path), _tied_parameters(model))
    text = config.get_text_config()
    layers = next(
        module
        for module in model.modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == text.num_hidden_layers
    )
    return ModelShape(
        hidden_size=text.hidden_size,
        intermediate_size=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        num_layers=text.num_hidden_layers,
        num_heads=text.num_attention_heads,
        num_kv_heads=getattr(text, "num_key_value_heads", None) or text.num_attention_heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        vocab_size=text.vocab_size,
        max_positions=text.max_position_embeddings,
        num_parameters=_count(model),
        num_layer_parameters=max(_count(layer) for layer in layers),
        num_replicated_parameters=sum(
            parameter.numel()
            for name, parameter in model.named_parameters()
            if "norm" in name or name.endswith("mlp.gate.weight")
        ),
        linear_layers=tuple(
            LinearLayer(name.rpartition(".")[2], layer.in_features, layer.out_features)
            for name, layer in linear_layers(model).items()
        ),
        has_latent_attention=getattr(text, "kv_lora_rank", None) is not None,
    )


def _tied_parameters(model: PreTrainedModel) -> dict[str, str]:
    """As `check_weight_files` takes them."""
    keys = model._tied_weights_keys
    return keys if isinstance(keys, dict) and model.config.get_text_config().tie_word_embeddings else {}


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def read_model_config(path: str, trust_remote_code: bool = False) -> PretrainedConfig:
    """The configuration of a model, from where `read_model_shape` looks.

    Raises:
        DataError: as in `read_model_shape`.
        ConfigError: the folder holds an adapter, or the weights are quantised.
    """
    config = _find_config(path, trust_remote_code)
    if quantisation := getattr(config, "quantization_config", None):
        method = quantisation["quant_method"] if isinstance(quantisation, dict) else quantisation.quant_method
        raise ConfigError(
            f"model.path={path}: its weights are quantised ({method}), and the learner trains float32 ones; give the "
            "model that it was made from"
        )
    return config


def _find_config(path: str, trust_remote_code: bool) -> PretrainedConfig:
    from transformers import AutoConfig

    folder = Path(path)
    if (folder / "adapter_config.json").is_file():
        raise ConfigError(
            f"model.path={path}: the folder holds an adapter (adapter_config.json); merge it into its base model, with "
            "merge_and_unload of peft, and give the folder of the result"
        )
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise DataError(f"model.path={path}: the folder has no config.json; give a Hugging Face model folder")
    if not folder.is_dir() and _looks_local(path):
        raise DataError(f"model.path={path}: no such folder; {ENOUGH}")
    try:
        return AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        if folder.is_dir() or isinstance(error, ValueError):
            raise DataError(f"model.path={path}: its config.json cannot be used: {error}") from error
    return AutoConfig.for_model(**_download_config(path))


def _looks_local(path: str) -> bool:
    """A hub name is `name` or `owner/name`."""
    return path.startswith(("/", ".", "~")) or path.count("/") > 1


def _download_config(name: str) -> dict[str, Any]:
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import build_hf_headers

    sources = f"not a local folder, not in the local hub cache ({constants.HF_HUB_CACHE})"
    if constants.HF_HUB_OFFLINE:
        raise DataError(f"model.path={name}: {sources}, and HF_HUB_OFFLINE is set; {ENOUGH}")
    try:
        request = urllib.request.Request(hf_hub_url(name, "config.json"), headers=build_hf_headers())
        with urllib.request.urlopen(request, timeout=HUB_TIMEOUT_S) as response:
            return json.load(response)
    except (OSError, ValueError, HFValidationError) as error:
        raise DataError(f"model.path={name}: {sources}, and the hub did not give it ({error}); {ENOUGH}") from error
