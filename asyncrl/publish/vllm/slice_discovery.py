"""Finds a worker's slices from its model as vLLM has loaded it: `load_weights` runs on tensors without data.

Both sides of every copy that a weight loader makes are views; where a view lies in its storage says exactly which
elements of the checkpoint tensor go where. So whatever the loaders do (fuse, shard, replicate) is seen, not assumed.

The functions of vLLM's reload module are private (vLLM 0.32); drop them for a public dry run when there is one.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from vllm.model_executor.model_loader.reload.layerwise import (
    _get_original_loader,
    _place_kernel_tensors,
    get_layerwise_info,
    initialize_layerwise_reload,
)
from vllm.model_executor.model_loader.reload.utils import get_layer_params_buffers

from asyncrl.publish.checkpoint_names import as_in_checkpoint
from asyncrl.publish.plan import Slice, joined
from asyncrl.publish.slice_recorder import SliceRecorder


def find_slices(model: torch.nn.Module, model_type: str, tensors: Mapping[str, torch.Tensor]) -> list[Slice]:
    """What this worker keeps of each checkpoint tensor.

    The model must not run meanwhile: its parameters are replaced by empty ones, and put back at the end.

    Args:
        model_type: as in its config.json.
        tensors: name in transformers → meta tensor.

    Raises:
        PublishError: a loader computes with the weights instead of copying parts of them.
    """
    initialize_layerwise_reload(model)
    try:
        recorder = SliceRecorder(tensors, _unloaded_parameters(model))
        with recorder:
            model.load_weights(as_in_checkpoint(tensors, model_type))  # type: ignore[operator]
    finally:
        abandon_reload(model)
    return joined(recorder.slices)


def abandon_reload(model: torch.nn.Module) -> None:
    """Ends a layerwise reload without loading: every layer gets its tensors back."""
    for layer in model.modules():
        info = get_layerwise_info(layer)
        if info.can_load():
            _place_kernel_tensors(layer, info)
            info.reset()


def _unloaded_parameters(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Dotted name → parameter, as vLLM makes them before loading; with the loaders that the reload has wrapped."""
    parameters = {}
    for prefix, layer in model.named_modules():
        for name, parameter in get_layer_params_buffers(layer)[0].items():
            parameter.weight_loader = _get_original_loader(parameter)
            parameters[f"{prefix}.{name}"] = parameter
    return parameters
