"""A worker's next weights, put together beside those that serve, so that the switch is short.

    a thread, model running     put      each piece → its place in a new parameter; when a layer has all of its own,
                                         what vLLM makes of them (on CPU: prepacked matrices) is made too
    between two decode steps    switch   the layers take over what is new
                                verify   what they hold now is compared with what came

On CPU the switch swaps pointers. On a GPU, whose CUDA graphs know addresses, it copies from pinned host memory.
"""

from __future__ import annotations

import copy
import random
from collections import Counter, defaultdict
from dataclasses import dataclass

import torch
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info
from vllm.platforms import current_platform

from asyncrl.errors import PublishError
from asyncrl.publish.checksum import word_sum
from asyncrl.publish.plan import Piece, Slice, pack, place_alone

Spare = dict[tuple[torch.Size, torch.dtype], list[torch.Tensor]]
"""Memory of parameters that vLLM has prepacked and dropped, for the next of their kind, in this publish and later."""


class Staging:
    """One version on its way into a model.

    Args:
        model: serves meanwhile; nothing of it changes before `switch`.
        slices: what this worker keeps.
        pieces: what will come.
        transport_device: where it will come.
        at_once: the model stands still, and there is no room for a second copy: each layer takes over its own as
            soon as they have come.
        spare: None = what has come is kept, for `pack`.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        slices: list[Slice],
        pieces: list[Piece],
        transport_device: torch.device,
        at_once: bool,
        spare: Spare | None,
    ) -> None:
        self._transport_device = transport_device
        self._at_once = at_once
        self._spare = spare
        self._modules = dict(model.named_modules())
        self._holders: dict[int, list[tuple[torch.nn.Module, str]]] = defaultdict(list)
        """By a parameter's id: the modules that have it, more than one where it is tied, and their names for it."""
        for module in model.modules():
            for name, parameter in module._parameters.items():
                self._holders[id(parameter)].append((module, name))
        self._new: dict[str, dict[str, torch.nn.Parameter]] = defaultdict(dict)
        """By module and its own name for it."""
        self._layers: list[_Layer] = []
        exact = {(piece.name, piece.region): piece for piece in pieces}
        whole = {piece.name: piece for piece in pieces}
        self._slices: dict[Piece, list[Slice]] = defaultdict(list)
        for one in slices:
            self._slices[exact.get((one.name, one.source), whole[one.name])].append(one)
        self._num_missing = Counter(_module_name(one.parameter) for one in slices)
        self._num_loaded: Counter[str] = Counter()
        for one in slices:
            self._num_loaded[one.parameter] += one.target.num_elements

    def place(self, bucket: list[Piece]) -> torch.Tensor | None:
        """Where a bucket's bytes may come at once, uint8; None = nowhere as they are. `put` has to follow."""
        slices = self._slices[bucket[0]]
        if not slices or slices[0].source != bucket[0].region:
            return None
        return place_alone(bucket, self._target(slices[0]), self._transport_device)

    def put(self, piece: Piece, part: torch.Tensor) -> None:
        """Takes what this worker keeps of a piece; `part` holds its elements, contiguous, in its region's shape."""
        for one in self._slices[piece]:
            mine = part if piece.region == one.source else one.source.view(part)
            target = self._target(one)
            if target.data_ptr() != mine.data_ptr():  # else it came here
                target.copy_(mine)
            name = _module_name(one.parameter)
            self._num_missing[name] -= 1
            if not self._num_missing[name]:
                self._prepare(name)

    def pack(self, bucket: list[Piece], memory: torch.Tensor) -> torch.Tensor:
        """A bucket that has come, as it came; where each piece is what a slice keeps."""
        return pack(bucket, [self._target(self._slices[piece][0]) for piece in bucket], memory)

    def switch(self) -> None:
        """The model must not run meanwhile."""
        assert not any(self._num_missing.values()), "switched to weights that have not come"
        if not self._at_once:
            for layer in self._layers:
                layer.take_over()

    def verify(self) -> None:
        """Compares what the layers hold with what they were to take over.

        Raises:
            PublishError: a parameter differs.
        """
        for layer in self._layers:
            layer.verify()

    def _target(self, one: Slice) -> torch.Tensor:
        return one.target.view(self._new_parameter(one.parameter).data)

    def _new_parameter(self, full_name: str) -> torch.nn.Parameter:
        """As vLLM makes it before loading; zero where nothing is loaded (a padded vocabulary)."""
        module_name, name = _module_name(full_name), _own_name(full_name)
        new = self._new[module_name]
        if name not in new:
            loadable = get_layerwise_info(self._modules[module_name]).restore_metadata[0]
            like = loadable.get(name, self._modules[module_name]._parameters[name])
            assert like is not None
            spare = self._spare.get((like.shape, like.dtype)) if self._spare is not None else None
            data = spare.pop() if spare else self._new_memory(like)
            if self._num_loaded[full_name] < data.numel():
                data.zero_()
            new[name] = torch.nn.Parameter(data, requires_grad=False)
        return new[name]

    def _new_memory(self, like: torch.Tensor) -> torch.Tensor:
        """In host memory, or where the bytes come when a layer takes them over at once."""
        device = self._transport_device if self._at_once else torch.device("cpu")
        pinned = device.type == "cpu" and torch.accelerator.is_available()
        return torch.empty(like.shape, dtype=like.dtype, device=device, pin_memory=pinned)

    def _prepare(self, module_name: str) -> None:
        """A layer has all its parameters; so have those that share them (a head tied to the embedding)."""
        layer = self._modules[module_name]
        changes: dict[torch.nn.Module, dict[str, torch.nn.Parameter]] = {layer: {}}
        for name, new in self._new[module_name].items():
            for holder, its_name in self._holders[id(layer._parameters[name])]:
                changes.setdefault(holder, {})[its_name] = new
        ready = [_Layer.prepared(module, parameters) for module, parameters in changes.items()]
        self._layers += ready
        if self._spare is not None:
            held = {id(parameter) for one in ready for parameter in one.new._parameters.values()}
            for new in self._new.pop(module_name).values():
                if id(new) not in held:
                    self._spare.setdefault((new.shape, new.dtype), []).append(new.data)
        if self._at_once:
            for one in ready:
                one.take_over()
                one.new = one.serving


@dataclass
class _Layer:
    """A layer that serves, its next state, and how to see that it has taken it over."""

    serving: torch.nn.Module
    new: torch.nn.Module
    sums: dict[str, int]
    """Of the new parameters, by their names."""
    unit: torch.Tensor | None = None
    """[1, columns], a unit vector: a layer that multiplies with a prepacked matrix shows one column of it, exactly."""
    column: torch.Tensor | None = None
    """[rows], that column of what came."""

    @classmethod
    def prepared(cls, serving: torch.nn.Module, parameters: dict[str, torch.nn.Parameter]) -> _Layer:
        layer = cls(serving, copy.copy(serving), {})
        layer.new._parameters = {**serving._parameters, **parameters}
        method = getattr(serving, "quant_method", None)
        if current_platform.is_cpu() and isinstance(method, QuantizeMethodBase):
            if hasattr(serving, "cpu_linear") and "weight" in parameters:
                weight = parameters["weight"].data
                column = random.randrange(weight.shape[1])
                layer.unit = torch.zeros(1, weight.shape[1], dtype=weight.dtype)
                layer.unit[0, column] = 1
                layer.column = weight[:, column].clone()
            _process(method, layer.new)
        layer.sums = {name: word_sum(p.data) for name in parameters if (p := layer.new._parameters[name]) is not None}
        return layer

    def take_over(self) -> None:
        for name, parameter in self.new._parameters.items():
            mine = self.serving._parameters[name]
            if mine is None or parameter is None or mine is parameter:
                continue
            if mine.device.type == "cpu":
                mine.data = parameter.data
            else:
                mine.data.copy_(parameter.data)
        for name, value in vars(self.new).items():
            if name != "_parameters" and value is not vars(self.serving).get(name):
                vars(self.serving)[name] = value

    def verify(self) -> None:
        kind = type(self.serving).__name__
        for name, expected in self.sums.items():
            held = self.serving._parameters[name]
            if held is None or word_sum(held.data) != expected:
                raise PublishError(f"{name} of a {kind} does not hold what came for it")
        if self.unit is None or self.column is None:
            return
        method = self.serving.quant_method
        assert isinstance(method, QuantizeMethodBase)
        if not torch.equal(method.apply(self.serving, self.unit)[0], self.column):
            raise PublishError(f"a {kind} does not multiply with the weights that came for it")


def _process(method: QuantizeMethodBase, layer: torch.nn.Module) -> None:
    """What vLLM makes of loaded weights, in `layer`, for the first time: again, its CPU experts would stay unpacked.

    vLLM 0.32's UnquantizedFusedMoEMethod prepacks only while it has no kernel; drop the copy when it packs each time.
    """
    if getattr(method, "moe_kernel", None) is not None:
        method = copy.copy(method)
        method.moe_kernel = None
    method.process_weights_after_loading(layer)


def has_experts(model: torch.nn.Module) -> bool:
    return any(hasattr(getattr(module, "quant_method", None), "moe_kernel") for module in model.modules())


def _module_name(parameter: str) -> str:
    return parameter.rpartition(".")[0]


def _own_name(parameter: str) -> str:
    return parameter.rpartition(".")[2]
