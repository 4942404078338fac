"""What a publish computes runs where the tensors lie: nothing is made on the host in between.

Torch's fake tensors know a device without having one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from asyncrl.publish.checksum import BLOCK_WORDS, block_sums
from asyncrl.publish.delta import find_changes
from asyncrl.publish.plan import pack, place_alone, total_bytes, two_buffers, unpack, whole_pieces

DEVICE = torch.device("meta")


class NothingOnTheHost(TorchDispatchMode):
    """Refuses every operation that makes a tensor elsewhere."""

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        made = {leaf.device for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)}
        assert made <= {DEVICE}, f"{function} makes a tensor on {made}"
        return result


@pytest.fixture(autouse=True)
def _fake() -> Iterator[None]:
    with FakeTensorMode(shape_env=ShapeEnv()), NothingOnTheHost():
        yield


def on_device(num_bytes: int) -> torch.Tensor:
    return torch.empty(num_bytes, dtype=torch.uint8, device=DEVICE)


def test_the_sums_of_a_checksum_are_made_on_the_device_and_are_a_4096th_of_the_bytes() -> None:
    sums, rest = block_sums(on_device(8 * BLOCK_WORDS * 3 + 13))
    assert sums.device == rest.device == DEVICE
    assert (sums.shape, sums.dtype, rest.shape) == ((3,), torch.int64, (13,))


def test_a_delta_is_made_on_the_device() -> None:
    changes = find_changes(on_device(1000), on_device(1000))
    assert changes.device == DEVICE
    assert changes.dtype == torch.uint8


def test_buckets_are_packed_and_unpacked_on_the_device() -> None:
    tensors = {name: torch.empty(3, 5, dtype=torch.bfloat16, device=DEVICE) for name in ("a", "b")}
    bucket = whole_pieces(tensors)
    packed = pack(bucket, list(tensors.values()), next(two_buffers([bucket], DEVICE)))
    assert packed.device == DEVICE
    assert packed.shape == (total_bytes(bucket),)
    assert {part.device for _, part in unpack(bucket, packed)} == {DEVICE}


def test_a_large_tensor_travels_from_where_it_lies_only_if_that_is_the_transports_device() -> None:
    tensor = torch.empty(1 << 10, device=DEVICE)
    bucket = whole_pieces({"a": tensor})
    assert place_alone(bucket, tensor, torch.device("cpu")) is None
    alone = place_alone(bucket, tensor, DEVICE)
    assert alone is not None
    assert alone.device == DEVICE


def test_a_round_trip_over_the_host_would_be_seen() -> None:
    """The premise of this file."""
    with pytest.raises(AssertionError, match="makes a tensor on"):
        on_device(8).cpu().to(DEVICE)
