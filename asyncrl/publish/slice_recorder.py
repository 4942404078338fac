"""Which slices of which checkpoint tensors an engine's weight loaders copy where, without copying anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from asyncrl.errors import PublishError
from asyncrl.publish.plan import Region, Slice


class SliceRecorder(TorchDispatchMode):
    """Records copies from the given tensors into the given parameters, and makes none.

    Both sides of a copy are views. Where they lie in their storage says which elements go where.

    Args:
        tensors: by the names under which they are published; meta tensors will do.
        parameters: by their dotted names in the engine's model.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], parameters: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.slices: list[Slice] = []
        self.pairs: set[tuple[str, str]] = set()
        """Tensor and parameter of each copy, also of those without elements."""
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
        self.pairs.add((name, parameter))
        if source.numel():  # a worker may have none of a short vocabulary
            self.slices.append(Slice(name, Region.of(source), parameter, Region.of(target)))
        return target


def _storage(tensor: torch.Tensor) -> int:
    """The same for all views of one tensor, also where it has no data."""
    return int(tensor.untyped_storage()._cdata)
