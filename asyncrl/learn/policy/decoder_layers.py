"""The decoder's layers, the units of sharding: what of each is computed again in the backward pass, and compiling.

Both replace a layer's `forward` alone: the hooks by which FSDP gathers its weights stay outside of what is computed
again or compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from transformers import PreTrainedModel

from asyncrl.errors import ConfigError

_aten = torch.ops.aten
_ATTENTION = {
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
    _aten._flash_attention_forward.default,
}
KEPT = {
    "nothing": set(),
    "attention": _ATTENTION,
    "matmuls": _ATTENTION | {_aten.mm.default, _aten.addmm.default},
}
"""`learner.checkpointing_keeps` → operators whose results stay. Attention without a kernel of its own ("eager") is not
among them: its scores would be the largest of all."""

COMPILER = "inductor"
"""torch.compile's backend."""


def decoder_layers(hf: PreTrainedModel) -> list[nn.Module]:
    """In order.

    Raises:
        ConfigError: the model does not name them.
    """
    layers = [module for module in hf.modules() if type(module).__name__ in hf._no_split_modules]
    if not layers:
        raise ConfigError(f"model.path={hf.name_or_path!r}: {type(hf).__name__} does not name its decoder layers")
    return layers


def checkpoint_layers(hf: PreTrainedModel, keeps: str) -> None:
    """Each layer's backward pass is given only its arguments and what `learner.checkpointing_keeps` names.

    Raises:
        ConfigError: as in `decoder_layers`.
    """
    for layer in decoder_layers(hf):
        layer.forward = _checkpointed(layer.forward, keeps)


def compile_layers(hf: PreTrainedModel) -> None:
    """torch.compile of each layer, after checkpointing, for any number of rows and tokens.

    Weights are arguments of what is compiled, so layers of one kind share it. What is compiled anew is another kind of
    attention mask, and a pass without gradients.

    Raises:
        ConfigError: as in `decoder_layers`.
    """
    for layer in decoder_layers(hf):
        layer.forward = torch.compile(layer.forward, dynamic=True, backend=COMPILER)


def _checkpointed(forward: Callable[..., Any], keeps: str) -> Callable[..., Any]:
    options: dict[str, Any] = {"use_reentrant": False}
    if keeps != "nothing":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, partial(_policy, KEPT[keeps]))

    @wraps(forward)
    def again(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, **options, **kwargs)

    return again


def _policy(kept: set[Any], context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in kept else CheckpointPolicy.PREFER_RECOMPUTE
