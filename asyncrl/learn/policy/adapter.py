"""LoRA adapters in a model (arXiv 2106.09685), with peft: which layers get one, merged weights, the model without them.

A layer computes base(x) + alpha/rank · B(A(x)). B begins as zero, so that the first policy is the model as it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate
from transformers import PreTrainedModel

from asyncrl.config.linear_layers import targeted_layers
from asyncrl.config.lora import LoraConfig
from asyncrl.learn.policy.sharded_load import Shards, own_rows
from asyncrl.publish.adapter import adapter_names, merged

NAME = "default"
"""peft's name of a model's only adapter."""


def add_adapter(model: PreTrainedModel, lora: LoraConfig) -> Any:
    """Freezes an unsharded model and gives its layers adapters, float32, by peft.

    Returns:
        peft's `LoraConfig`, as an adapter folder has it.

    Raises:
        ConfigError: lora.targets names a layer that the model does not have.
    """
    from peft import inject_adapter_in_model

    config = _peft_config(model, lora)
    inject_adapter_in_model(config, model)
    for layer in adapted_layers(model).values():
        layer.lora_A.float()
        layer.lora_B.float()
    return config


def begin_adapter(
    model: PreTrainedModel, shards: Shards, lora: LoraConfig, dtype: torch.dtype, mesh: DeviceMesh, seed: int
) -> None:
    """`add_adapter` to a model on the meta device, with this rank's rows of the first A and B: the same for any number
    of ranks.

    Args:
        shards: of the model; they get the adapter's.
        dtype: of the frozen weights.

    Raises:
        ConfigError: as in `add_adapter`.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    rows = shards.parameters
    for name in rows:
        rows[name] = rows[name].to(dtype)
    add_adapter(model, lora)
    generator = torch.Generator().manual_seed(seed)
    for weight, layer in adapted_layers(model).items():
        name = weight.removesuffix(".weight")
        for leaf in ("weight", "bias"):
            if f"{name}.{leaf}" in rows:
                rows[f"{name}.base_layer.{leaf}"] = rows.pop(f"{name}.{leaf}")
        lora_a, lora_b = (torch.zeros(side[NAME].weight.shape) for side in (layer.lora_A, layer.lora_B))
        nn.init.kaiming_uniform_(lora_a, a=math.sqrt(5), generator=generator)  # as peft
        rows[f"{name}.lora_A.{NAME}.weight"] = own_rows(lora_a, mesh)
        rows[f"{name}.lora_B.{NAME}.weight"] = own_rows(lora_b, mesh)


def _peft_config(model: PreTrainedModel, lora: LoraConfig) -> Any:
    from peft import LoraConfig as PeftConfig

    assert lora.rank is not None
    layers = targeted_layers(model, lora.targets)
    targets = {name.rpartition(".")[2] for name in layers}
    named_alike = {name for name, _ in model.named_modules() if name.rpartition(".")[2] in targets}
    if named_alike != layers.keys():  # as in experts
        targets = set(layers)
    return PeftConfig(
        r=lora.rank,
        lora_alpha=lora.scale * lora.rank,
        target_modules=sorted(targets),
        lora_dropout=0.0,  # the engine samples without dropout, so with it even an on-policy ratio would not be 1
        task_type="CAUSAL_LM",
        base_model_name_or_path=model.name_or_path,
    )


def adapted_layers(model: nn.Module) -> dict[str, Any]:
    """Hugging Face name of the weight → peft's layer in its place; empty without an adapter."""
    return {f"{name}.weight": module for name, module in model.named_modules() if hasattr(module, "lora_A")}


def base_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """(Hugging Face name, parameter) of the model without an adapter."""
    for name, parameter in model.named_parameters():
        if ".lora_A." not in name and ".lora_B." not in name:
            yield name.replace(".base_layer.", "."), parameter


def adapter_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of each A, and of each B times alpha/rank, by the names of `publish/adapter.py`."""
    for name, layer in adapted_layers(model).items():
        yield from zip(adapter_names(name), _matrices(layer), strict=True)


def merged_parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(Hugging Face name, tensor) of the model that the adapter makes of its base. Collective where it is sharded."""
    layers = adapted_layers(model)
    for name, parameter in base_parameters(model):
        if name not in layers:
            yield name, parameter
            continue
        lora_a, lora_b = _matrices(layers[name])
        if isinstance(lora_a, DTensor):  # B is sharded as the base is: each rank makes its own rows
            lora_a = lora_a.redistribute(placements=[Replicate()])
        yield name, merged(parameter.detach(), lora_a, lora_b)


@contextmanager
def without_adapter(model: nn.Module) -> Iterator[None]:
    """The model computes as its base.

    peft's `enable_adapters` would turn requires_grad off and on as well, which FSDP looks at only once.
    """
    layers = adapted_layers(model).values()
    try:
        for layer in layers:
            layer._disable_adapters = True
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def _matrices(layer: Any) -> tuple[Tensor, Tensor]:
    """A, and B times alpha/rank."""
    return layer.lora_A[NAME].weight.detach(), layer.scaling[NAME] * layer.lora_B[NAME].weight.detach()
