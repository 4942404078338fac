"""A worker's next parameters, for an engine that computes with what came, put together beside those that serve.

    a thread, model running     put      each piece → its place in a new parameter
    between two decode steps    switch   the model takes them over
                                verify   what it holds now is compared with what came

On a CPU the switch swaps pointers. On a GPU, whose CUDA graphs know addresses, it copies from pinned host memory.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from asyncrl.errors import PublishError
from asyncrl.publish.assembly import SlicedAssembly
from asyncrl.publish.checksum import word_sum
from asyncrl.publish.plan import Piece, Slice

Spare = dict[str, torch.Tensor]
"""By parameter: memory of a version that serves no more."""


class NextParameters(SlicedAssembly):
    """One version on its way into a model.

    Args:
        parameters: that serve meanwhile, by name; only those that a slice goes to change.
        slices: what this worker keeps.
        pieces: what will come.
        transport_device: where it will come.
        at_once: the model stands still, and there is no second copy: everything takes its place as it comes.
        spare: taken from for the new version, and given back to; None = what has come is kept, for `pack`.
    """

    def __init__(
        self,
        parameters: Mapping[str, torch.nn.Parameter],
        slices: list[Slice],
        pieces: list[Piece],
        transport_device: torch.device,
        at_once: bool,
        spare: Spare | None,
    ) -> None:
        super().__init__(slices, pieces, transport_device)
        self._serving = {one.parameter: parameters[one.parameter] for one in slices}
        self._spare = spare
        self._num_missing = len(slices)
        if at_once:
            self._new = {name: parameter.data for name, parameter in self._serving.items()}
            return
        self._new = {name: self._memory_for(name) for name in self._serving}
        num_loaded = dict.fromkeys(self._serving, 0)
        for one in slices:
            num_loaded[one.parameter] += one.target.num_elements
        for name, new in self._new.items():
            if num_loaded[name] < new.numel():  # a padded vocabulary
                new.zero_()

    def switch(self) -> None:
        assert not self._num_missing, "switched to weights that have not come"
        for name, parameter in self._serving.items():
            unused = new = self._new[name]
            if new.data_ptr() == parameter.data_ptr():
                continue
            if parameter.device.type == "cpu":
                unused, parameter.data = parameter.data, new
            else:
                parameter.data.copy_(new, non_blocking=True)
            if self._spare is not None:
                self._spare[name] = unused

    def verify(self) -> None:
        for name, parameter in self._serving.items():
            if word_sum(parameter.data) != self._sums[name]:
                raise PublishError(f"{name} does not hold what came for it")

    def _new_parameter(self, name: str) -> torch.Tensor:
        return self._new[name]

    def _has_come(self, one: Slice) -> None:
        self._num_missing -= 1
        if not self._num_missing:
            self._sums = {name: word_sum(new) for name, new in self._new.items()}

    def _memory_for(self, name: str) -> torch.Tensor:
        if self._spare and name in self._spare:
            return self._spare.pop(name)
        like = self._serving[name]
        pinned = like.device.type != "cpu" and torch.accelerator.is_available()
        return torch.empty(like.shape, dtype=like.dtype, pin_memory=pinned)
