"""The layers of a model that can have an adapter (docs/lora.md)."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from asyncrl.errors import ConfigError

_ROUTERS = ("gate", "router", "shared_expert_gate")


def linear_layers(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """Dotted name → linear layer of the decoder, without experts and their routers."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module is not model.get_output_embeddings()
        and ".experts." not in name
        and name.rpartition(".")[2] not in _ROUTERS
    }


def targeted_layers(model: PreTrainedModel, targets: list[str]) -> dict[str, nn.Linear]:
    """Those whose last part of the name is among the targets; all without targets.

    Raises:
        ConfigError: a target that is no such layer.
    """
    layers = linear_layers(model)
    known = sorted({name.rpartition(".")[2] for name in layers})
    if unknown := sorted(set(targets) - set(known)):
        raise ConfigError(
            f"lora.targets names {', '.join(unknown)}, and the linear layers of this model that can have an adapter "
            f"are {', '.join(known)}"
        )
    return {name: layer for name, layer in layers.items() if not targets or name.rpartition(".")[2] in targets}
