"""One layer of a version that is put together: its next state, how it takes it over, and how that shows.

What vLLM makes of loaded weights (on CPU prepacked matrices, on a GPU experts in the kernel's order) is made in a copy
of the layer, which serves on meanwhile.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping

import torch
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

from asyncrl.errors import PublishError
from asyncrl.publish.checksum import word_sum

Parameters = dict[str, torch.nn.Parameter]
"""By a layer's own names for them."""


def keeps_addresses(device: torch.device) -> bool:
    """CUDA graphs know where weights lie. On a CPU nothing does, and a swap of pointers copies no bytes."""
    return device.type != "cpu"


class StagedLayer:
    """`prepare` while the layer serves, then `take_over` while it does not, then `verify`.

    Args:
        serving: the layer of the model.
        parameters: as they came: where the model lies, or in host memory.
        device: where the model lies.
        keep: they are still needed as they came, when the layer has taken over.
    """

    def __init__(self, serving: torch.nn.Module, parameters: Parameters, device: torch.device, keep: bool) -> None:
        self.serving = serving
        self._parameters = parameters
        self._device = device
        self._keep = keep
        self._next: torch.nn.Module | None = None
        """With what vLLM makes of its parameters; None: they are to be brought to the model's device first."""
        self._sums: dict[str, int] = {}
        """Of what the layer takes over, by name."""
        self._unit: torch.Tensor | None = None
        """[1, columns], a unit vector: a layer that multiplies with a prepacked matrix shows one column of it."""
        self._column: torch.Tensor | None = None
        """[rows], that column of what came."""

    def prepare(self) -> None:
        if hasattr(self.serving, "cpu_linear") and "weight" in self._parameters:
            self._remember_a_column(self._parameters["weight"].data)
        if all(parameter.device == self._device for parameter in self._parameters.values()):
            self._next = self._processed(self._parameters)
        else:
            self._sums = _sums(self._parameters)

    def take_over(self) -> None:
        """The model must not run meanwhile."""
        new = self._next if self._next is not None else self._from_host()
        for name, parameter in new._parameters.items():
            mine = self.serving._parameters[name]
            if mine is None or parameter is None or mine is parameter:
                continue
            if keeps_addresses(self._device):
                mine.data.copy_(parameter.data)
            else:
                mine.data = parameter.data
        for name, value in vars(new).items():
            if name != "_parameters" and value is not vars(self.serving).get(name):
                vars(self.serving)[name] = value

    def verify(self) -> None:
        """Raises PublishError where the layer does not hold what it was to take over."""
        kind = type(self.serving).__name__
        for name, expected in self._sums.items():
            held = self.serving._parameters[name]
            if held is None or word_sum(held.data) != expected:
                raise PublishError(f"{name} of a {kind} does not hold what came for it")
        if self._unit is None or self._column is None:
            return
        method = self.serving.quant_method
        assert isinstance(method, QuantizeMethodBase)
        if not torch.equal(method.apply(self.serving, self._unit)[0], self._column):
            raise PublishError(f"a {kind} does not multiply with the weights that came for it")

    def holds(self, parameter: torch.nn.Parameter) -> bool:
        """It takes this memory over, or copies from it."""
        if self._next is None:
            return any(parameter is mine for mine in self._parameters.values())
        address = parameter.data_ptr()
        return any(mine is not None and mine.data_ptr() == address for mine in self._next._parameters.values())

    def let_go(self) -> None:
        """Of all memory but the layer's own; it can still verify."""
        self._parameters, self._next = {}, None

    def _remember_a_column(self, weight: torch.Tensor) -> None:
        column = random.randrange(weight.shape[1])
        self._unit = torch.zeros(1, weight.shape[1], dtype=weight.dtype, device=weight.device)
        self._unit[0, column] = 1
        self._column = weight[:, column].clone()

    def _from_host(self) -> torch.nn.Module:
        """Straight from host memory to where they serve, but where vLLM has to make something of them in between."""
        if not _computes(self.serving):
            return self._with(self._parameters)
        moved = {name: _parameter(mine.data.to(self._device)) for name, mine in self._parameters.items()}
        for name, came in _sums(moved).items():
            if came != self._sums[name]:
                raise PublishError(f"{name} of a {type(self.serving).__name__} came to the device as something else")
        return self._processed(moved)

    def _processed(self, parameters: Parameters) -> torch.nn.Module:
        """With what vLLM makes of them; `parameters` may be changed by that unless they are to be kept."""
        in_place = keeps_addresses(self._device)
        if self._keep and in_place and _computes(self.serving):
            parameters = {name: _parameter(mine.data.clone()) for name, mine in parameters.items()}
        layer = self._with(parameters)
        method = getattr(self.serving, "quant_method", None)
        if isinstance(method, QuantizeMethodBase):
            if not in_place and getattr(method, "moe_kernel", None) is not None:
                # vLLM 0.32's UnquantizedFusedMoEMethod prepacks for a CPU only while it has no kernel; drop the copy
                # when it packs each time.
                method = copy.copy(method)
                method.moe_kernel = None
            method.process_weights_after_loading(layer)
        self._sums = _sums({name: layer._parameters[name] for name in parameters})
        return layer

    def _with(self, parameters: Parameters) -> torch.nn.Module:
        layer = copy.copy(self.serving)
        layer._parameters = {**self.serving._parameters, **parameters}
        return layer


def _computes(layer: torch.nn.Module) -> bool:
    """On a GPU, vLLM makes something else of this layer's parameters than they are."""
    method = getattr(layer, "quant_method", None)
    plain = (UnquantizedLinearMethod, UnquantizedEmbeddingMethod)
    return isinstance(method, QuantizeMethodBase) and not isinstance(method, plain)


def _sums(parameters: Mapping[str, torch.nn.Parameter | None]) -> dict[str, int]:
    return {name: word_sum(parameter.data) for name, parameter in parameters.items() if parameter is not None}


def _parameter(data: torch.Tensor) -> torch.nn.Parameter:
    return torch.nn.Parameter(data, requires_grad=False)
