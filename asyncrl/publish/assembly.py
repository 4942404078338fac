"""What an engine offers a publish: somewhere to put a version together, and a way to switch to it."""

from __future__ import annotations

from typing import Protocol

import torch

from asyncrl.publish.plan import Piece, Slice, pack, place_alone, slices_of_pieces


class Assembly(Protocol):
    """One version on its way into a model, put together beside the one that serves."""

    def place(self, bucket: list[Piece]) -> torch.Tensor | None:
        """Where a bucket's bytes may come at once, uint8; None = nowhere as they are. `put` has to follow."""

    def put(self, piece: Piece, part: torch.Tensor) -> None:
        """Takes a piece; `part` holds its elements, contiguous, in its region's shape, and is good for this call."""

    def pack(self, bucket: list[Piece], memory: torch.Tensor) -> torch.Tensor:
        """A bucket that has come, as it came, at the beginning of `memory`."""

    def switch(self) -> None:
        """The model takes it over; it must not run meanwhile."""

    def verify(self) -> None:
        """Raises PublishError where the model does not hold what came."""


class SlicedAssembly:
    """What is the same in every engine: each piece goes to its places in the new parameters.

    An engine's own part is which parameters are new, and what happens when one has come.

    Args:
        slices: what this worker keeps.
        pieces: what will come.
        transport_device: where it will come.
    """

    def __init__(self, slices: list[Slice], pieces: list[Piece], transport_device: torch.device) -> None:
        self._slices = slices_of_pieces(slices, pieces)
        self._transport_device = transport_device

    def place(self, bucket: list[Piece]) -> torch.Tensor | None:
        """See `Assembly`."""
        slices = self._slices[bucket[0]]
        if not slices or slices[0].source != bucket[0].region:
            return None
        return place_alone(bucket, self._target(slices[0]), self._transport_device)

    def put(self, piece: Piece, part: torch.Tensor) -> None:
        """See `Assembly`."""
        for one in self._slices[piece]:
            mine = part if piece.region == one.source else one.source.view(part)
            target = self._target(one)
            if target.data_ptr() != mine.data_ptr():  # else it came here
                target.copy_(mine)
            self._has_come(one)

    def pack(self, bucket: list[Piece], memory: torch.Tensor) -> torch.Tensor:
        """See `Assembly`; where each piece is what a slice keeps."""
        return pack(bucket, [self._target(self._slices[piece][0]) for piece in bucket], memory)

    def _target(self, one: Slice) -> torch.Tensor:
        return one.target.view(self._new_parameter(one.parameter))

    def _new_parameter(self, name: str) -> torch.Tensor:
        """By its name in the engine's model."""
        raise NotImplementedError

    def _has_come(self, one: Slice) -> None:
        """A slice is in its place."""
        raise NotImplementedError
