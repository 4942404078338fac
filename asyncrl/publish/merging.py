"""A worker's half of publish.engine=adapter: base weights are kept, the adapter comes, merged weights are put in place.

    first transfer   base weights and adapter ─▶ those that the adapter changes are kept, all are put in place
    later ones       the adapter alone ───────▶ base + B·A, of the layers that it changes, is put in place

The engine never knows: it is given weights, as in every other kind of publish, and checks them in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from asyncrl.publish.adapter import adapter_names, is_adapter, merged_part
from asyncrl.publish.assembly import Assembly
from asyncrl.publish.plan import Piece, Slice, own_pieces

Base = dict[Piece, torch.Tensor | None]
"""The pieces of the layers that an adapter changes, in host memory; None = it has not come yet."""


def changing_slices(slices: list[Slice], tensors: Mapping[str, torch.Tensor]) -> list[Slice]:
    """Those of layers with an adapter. What is fused with an adapted weight is among them: a layer changes whole."""
    layers = {_layer_of(one.parameter) for one in slices if adapter_names(one.name)[0] in tensors}
    return [one for one in slices if _layer_of(one.parameter) in layers]


def empty_base(slices: list[Slice], tensors: Mapping[str, torch.Tensor]) -> Base:
    return dict.fromkeys(own_pieces(slices, tensors))


class Merging:
    """Stands before an assembly, and gives it merged weights as soon as the whole adapter has come.

    Args:
        assembly: of the version that is on its way.
        base: filled by the first transfer; the same one for every version.
        num_adapter_pieces: how many will come.
    """

    def __init__(self, assembly: Assembly, base: Base, num_adapter_pieces: int) -> None:
        self._assembly = assembly
        self._base = base
        self._adapter: dict[str, torch.Tensor] = {}
        self._num_adapter_pieces = num_adapter_pieces

    def place(self, bucket: list[Piece]) -> torch.Tensor | None:
        is_ours = bucket[0] in self._base or is_adapter(bucket[0].name)
        return None if is_ours else self._assembly.place(bucket)

    def put(self, piece: Piece, part: torch.Tensor) -> None:
        if is_adapter(piece.name):
            self._adapter[piece.name] = part.clone()
            if len(self._adapter) == self._num_adapter_pieces:
                self._merge()
        elif piece in self._base:
            self._base[piece] = part.to("cpu", copy=True)
        else:
            self._assembly.put(piece, part)

    def pack(self, bucket: list[Piece], memory: torch.Tensor) -> torch.Tensor:
        return self._assembly.pack(bucket, memory)

    def switch(self) -> None:
        self._assembly.switch()

    def verify(self) -> None:
        self._assembly.verify()

    def _merge(self) -> None:
        for piece, part in self._base.items():
            assert part is not None, "an adapter came before the weights that it changes"
            lora_a, lora_b = adapter_names(piece.name)
            if lora_a in self._adapter:
                matrices = self._adapter[lora_a].to(part.device), self._adapter[lora_b].to(part.device)
                part = merged_part(part, piece.region, *matrices)
            self._assembly.put(piece, part)


def _layer_of(parameter: str) -> str:
    return parameter.rpartition(".")[0]
