"""A rank's next parameters, put together beside those that serve, so that the switch is short.

    a thread, model running     put      each piece → its place in a new parameter
    between two decode steps    switch   the model takes them over
                                verify   what it holds now is compared with what came

On a CPU the switch swaps pointers. On a GPU, whose CUDA graphs know addresses, it copies from pinned host memory.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from asyncrl.errors import PublishError
from asyncrl.publish.checksum import word_sum
from asyncrl.publish.plan import Piece, Slice, pack, place_alone, slices_of_pieces

Spare = dict[str, torch.Tensor]
"""By parameter: memory of a version that serves no more."""


class NextParameters:
    """One version on its way into a model.

    Args:
        parameters: that serve meanwhile, by name; only those that a slice goes to change.
        slices: what this rank keeps.
        pieces: what will come.
        transport_device: where it will come.
        at_once: the model stands still, and there is no second copy: everything takes its place as it comes.
        spare: taken from for the new version, and given back to.
    """

    def __init__(
        self,
        parameters: Mapping[str, torch.nn.Parameter],
        slices: list[Slice],
        pieces: list[Piece],
        transport_device: torch.device,
        at_once: bool,
        spare: Spare,
    ) -> None:
        self._serving = {one.parameter: parameters[one.parameter] for one in slices}
        self._transport_device = transport_device
        self._spare = spare
        self._slices = slices_of_pieces(slices, pieces)
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

    def place(self, bucket: list[Piece]) -> torch.Tensor | None:
        """See `Assembly`."""
        slices = self._slices[bucket[0]]
        if not slices or slices[0].source != bucket[0].region:
            return None
        return place_alone(bucket, self._target(slices[0]), self._transport_device)

    def put(self, piece: Piece, part: torch.Tensor) -> None:
        for one in self._slices[piece]:
            mine = part if piece.region == one.source else one.source.view(part)
            target = self._target(one)
            if target.data_ptr() != mine.data_ptr():  # else it came here
                target.copy_(mine)
            self._num_missing -= 1
        if not self._num_missing:
            self._sums = {name: word_sum(new) for name, new in self._new.items()}

    def pack(self, bucket: list[Piece], memory: torch.Tensor) -> torch.Tensor:
        """As it came; where each piece is what a slice keeps."""
        return pack(bucket, [self._target(self._slices[piece][0]) for piece in bucket], memory)

    def switch(self) -> None:
        assert not self._num_missing, "switched to weights that have not come"
        for name, parameter in self._serving.items():
            new = self._new[name]
            if new.data_ptr() == parameter.data_ptr():
                continue
            if parameter.device.type == "cpu":
                self._spare[name], parameter.data = parameter.data, new
            else:
                parameter.data.copy_(new, non_blocking=True)
                self._spare[name] = new

    def verify(self) -> None:
        for name, parameter in self._serving.items():
            if word_sum(parameter.data) != self._sums[name]:
                raise PublishError(f"{name} does not hold what came for it")

    def _target(self, one: Slice) -> torch.Tensor:
        return one.target.view(self._new[one.parameter])

    def _memory_for(self, name: str) -> torch.Tensor:
        if (spare := self._spare.pop(name, None)) is not None:
            return spare
        like = self._serving[name]
        pinned = like.device.type != "cpu" and torch.accelerator.is_available()
        return torch.empty(like.shape, dtype=like.dtype, pin_memory=pinned)
