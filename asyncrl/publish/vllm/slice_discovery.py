"""Finds a worker's slices from its model as vLLM has loaded it: `load_weights` runs on tensors without data.

Both sides of every copy that a weight loader makes are views; where a view lies in its storage says exactly which
elements of the checkpoint tensor go where. So whatever the loaders do (fuse, shard, replicate) is seen, not assumed.

The functions of vLLM's reload module are private (vLLM 0.32); drop them for a public dry run when there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from vllm.model_executor.model_loader.reload.layerwise import (
    _get_original_loader,
    _place_kernel_tensors,
    get_layerwise_info,
    initialize_layerwise_reload,
)
from vllm.model_executor.model_loader.reload.utils import get_layer_params_buffers

from asyncrl.errors import PublishError
from asyncrl.publish.plan import Region, Slice, joined
from asyncrl.publish.vllm.checkpoint_names import as_in_checkpoint


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
        recorder = _CopyRecorder(tensors, _unloaded_parameters(model))
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


class _CopyRecorder(TorchDispatchMode):
    """Records copies from the given tensors into the given parameters, and makes none."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], parameters: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.slices: list[Slice] = []
        self._names = {_storage(tensor): name for name, tensor in tensors.items()}
        self._parameters = {_storage(parameter): name for name, parameter in parameters.items()}

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is not torch.ops.aten.copy_.default:
            return function(*args, **(kwargs or {}))
        target, source = args[:2]
        name, parameter = self._names.get(_storage(source)), self._parameters.get(_storage(target))
        if name is None or parameter is None or source.shape != target.shape:
            raise PublishError(
                f"the weight loader of {parameter or 'an unknown parameter'} does not just copy parts of "
                f"{name or 'a checkpoint tensor'}, so its slices cannot be planned; asyncrl cannot publish this model"
            )
        if source.numel():  # a worker may have none of a short vocabulary
            self.slices.append(Slice(name, Region.of(source), parameter, Region.of(target)))
        return target


def _storage(tensor: torch.Tensor) -> int:
    """The same for all views of one tensor, also where it has no data."""
    return int(tensor.untyped_storage()._cdata)
