"""What an engine offers a publish: somewhere to put a version together, and a way to switch to it."""

from __future__ import annotations

from typing import Protocol

import torch

from asyncrl.publish.plan import Piece


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
