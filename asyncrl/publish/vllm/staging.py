"""A worker's next weights, put together beside those that serve, so that the switch is short.

    a thread, model running     put      each piece → its place in a new parameter; when a layer has all of its own,
                                         what vLLM makes of them is made too, where the model lies
    between two decode steps    switch   the layers take over what is new
                                verify   what they hold now is compared with what came

On CPU the switch swaps pointers. On a GPU, whose CUDA graphs know addresses, it copies: from GPU memory where there is
room for a second copy of the worker's slices, else from pinned host memory.
"""

from __future__ import annotations

from collections import Counter, defaultdict

import torch
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

from asyncrl.publish.assembly import SlicedAssembly
from asyncrl.publish.plan import Piece, Slice
from asyncrl.publish.vllm import latent_attention
from asyncrl.publish.vllm.staged_layer import Parameters, StagedLayer, keeps_addresses

Spare = dict[tuple[torch.Size, torch.dtype], list[torch.Tensor]]
"""Memory of parameters that no layer holds any more, for the next of their kind, in this publish and later."""


class Staging(SlicedAssembly):
    """One version on its way into a model.

    Args:
        model: serves meanwhile; nothing of it changes before `switch`.
        dtype: that the model computes in.
        slices: what this worker keeps.
        pieces: what will come.
        transport_device: where it will come.
        device: where the model lies.
        memory: where its next version is put together: there, or in host memory.
        at_once: the model stands still, and there is no room for a second copy: each layer takes over its own as
            soon as they have come.
        spare: None = what has come is kept, for `pack`.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        dtype: torch.dtype,
        slices: list[Slice],
        pieces: list[Piece],
        transport_device: torch.device,
        device: torch.device,
        memory: torch.device,
        at_once: bool,
        spare: Spare | None,
    ) -> None:
        super().__init__(slices, pieces, transport_device)
        self._dtype = dtype
        self._device = device
        self._memory = memory
        self._at_once = at_once
        self._spare = spare
        self._modules = dict(model.named_modules())
        self._latent_attentions = latent_attention.attentions(model)
        self._holders: dict[int, list[tuple[torch.nn.Module, str]]] = defaultdict(list)
        """By a parameter's id: the modules that have it, more than one where it is tied, and their names for it."""
        for module in model.modules():
            for name, parameter in module._parameters.items():
                self._holders[id(parameter)].append((module, name))
        self._new: dict[str, Parameters] = defaultdict(dict)
        """By module."""
        self._layers: list[StagedLayer] = []
        self._num_missing = Counter(_module_name(one.parameter) for one in slices)
        self._num_loaded: Counter[str] = Counter()
        for one in slices:
            self._num_loaded[one.parameter] += one.target.num_elements

    def switch(self) -> None:
        """The model must not run meanwhile."""
        assert not any(self._num_missing.values()), "switched to weights that have not come"
        if not self._at_once:
            for layer in self._layers:
                layer.take_over()
        for attention in self._latent_attentions:
            latent_attention.remake(attention, self._dtype)

    def verify(self) -> None:
        """Compares what the layers hold with what they were to take over.

        Raises:
            PublishError: a parameter differs.
        """
        for layer in self._layers:
            layer.verify()
        for attention in self._latent_attentions:
            latent_attention.verify(attention)
        if keeps_addresses(self._device):
            self._set_aside([parameter for new in self._new.values() for parameter in new.values()])

    def _new_parameter(self, full_name: str) -> torch.Tensor:
        """As vLLM makes it before loading; zero where nothing is loaded (a padded vocabulary)."""
        module_name, name = _module_name(full_name), _own_name(full_name)
        new = self._new[module_name]
        if name not in new:
            like = _as_loaded(self._modules[module_name], name)
            spare = self._spare.get((like.shape, like.dtype)) if self._spare is not None else None
            data = spare.pop() if spare else self._new_memory(like)
            if self._num_loaded[full_name] < data.numel():
                data.zero_()
            new[name] = torch.nn.Parameter(data, requires_grad=False)
        return new[name].data

    def _has_come(self, one: Slice) -> None:
        name = _module_name(one.parameter)
        self._num_missing[name] -= 1
        if not self._num_missing[name]:
            self._prepare(name)

    def _new_memory(self, like: torch.Tensor) -> torch.Tensor:
        pinned = self._memory.type == "cpu" and self._device.type != "cpu" and torch.accelerator.is_available()
        return torch.empty(like.shape, dtype=like.dtype, device=self._memory, pin_memory=pinned)

    def _prepare(self, module_name: str) -> None:
        """A layer has all its parameters; so have those that share them (a head tied to the embedding)."""
        layer = self._modules[module_name]
        changes: dict[torch.nn.Module, Parameters] = {layer: {}}
        for name, new in self._new[module_name].items():
            for holder, its_name in self._holders[id(layer._parameters[name])]:
                changes.setdefault(holder, {})[its_name] = new
        ready = [StagedLayer(module, mine, self._device, self._spare is None) for module, mine in changes.items()]
        for one in ready:
            one.prepare()
            if self._at_once:
                one.take_over()
        self._layers += ready
        if self._spare is None:
            return
        mine = self._new[module_name]
        taken_over = self._at_once and keeps_addresses(self._device)
        unused = [name for name, new in mine.items() if taken_over or not any(one.holds(new) for one in ready)]
        self._set_aside([mine.pop(name) for name in unused])
        if self._at_once:
            mine.clear()
            for one in ready:
                one.let_go()

    def _set_aside(self, parameters: list[torch.nn.Parameter]) -> None:
        if self._spare is not None:
            for parameter in parameters:
                self._spare.setdefault((parameter.shape, parameter.dtype), []).append(parameter.data)


def reserve(model: torch.nn.Module, slices: list[Slice], memory: torch.device) -> Spare:
    """Memory for all parameters that these slices go to."""
    modules, spare = dict(model.named_modules()), Spare()
    for full_name in dict.fromkeys(one.parameter for one in slices):
        like = _as_loaded(modules[_module_name(full_name)], _own_name(full_name))
        place = spare.setdefault((like.shape, like.dtype), [])
        place.append(torch.empty(like.shape, dtype=like.dtype, device=memory))
    return spare


def _as_loaded(module: torch.nn.Module, name: str) -> torch.Tensor:
    """A parameter as vLLM makes it before loading."""
    loadable = get_layerwise_info(module).restore_metadata[0]
    like = loadable.get(name, module._parameters[name])
    assert like is not None
    return like


def _module_name(parameter: str) -> str:
    return parameter.rpartition(".")[0]


def _own_name(parameter: str) -> str:
    return parameter.rpartition(".")[2]
