"""Shards become whole tensors in host memory, with two buckets on the way and no more."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from asyncrl.publish import gather as gather_module
from asyncrl.publish.gather import gather
from tests.support.learn import run_ranks

BUCKET_BYTES = 8_000
DTYPES = [torch.float32, torch.bfloat16]
SHAPES = {"matrix": (1000, 50), "norm": (7,), "one row": (1, 3), "experts": (5, 20, 30)}


class PeakBytes(TorchDispatchMode):
    """Of storages on one device that are made while it is on, at the moment when there are most."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.peak = self.now = 0
        self._device = device
        self._seen: set[int] = set()

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        given = {
            leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)
        }
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.device.type == self._device:
                self._count(leaf.untyped_storage(), given)
        return result

    def _count(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        key = storage._cdata
        if key in given or key in self._seen:
            return
        self._seen.add(key)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, storage.nbytes())

    def _forget(self, key: int, num_bytes: int) -> None:
        self._seen.discard(key)
        self.now -= num_bytes


def gather_on_a_rank(mesh: DeviceMesh, dtype: torch.dtype) -> tuple[dict[str, torch.Tensor], int]:
    """Also the most bytes that this rank held beside its shards and what it returns."""
    torch.manual_seed(0)
    whole = {name: torch.randn(shape) for name, shape in SHAPES.items()}
    sharded = {name: distribute_tensor(tensor, mesh, [Shard(0)]) for name, tensor in whole.items()}
    with PeakBytes("cpu") as memory:
        gathered = gather(sharded.items(), dtype, dist.get_rank() == 0, BUCKET_BYTES)
        peak = memory.peak
    columns = {name: distribute_tensor(whole[name], mesh, [Shard(1)]) for name in ("matrix", "experts")}
    columns["norm"] = distribute_tensor(whole["norm"], mesh, [Replicate()])
    others = gather(columns.items(), dtype, dist.get_rank() == 0, BUCKET_BYTES)
    assert all(torch.equal(tensor, gathered[name]) for name, tensor in others.items())
    return gathered, peak - sum(tensor.nbytes for tensor in gathered.values())


def gather_both(mesh: DeviceMesh) -> list[tuple[dict[str, torch.Tensor], int]]:
    return [gather_on_a_rank(mesh, dtype) for dtype in DTYPES]


def test_ranks_send_their_rows_a_bucket_at_a_time() -> None:
    torch.manual_seed(0)
    whole = {name: torch.randn(shape) for name, shape in SHAPES.items()}
    rank_0, *others = run_ranks(3, gather_both)
    for dtype, (gathered, extra_bytes) in zip(DTYPES, rank_0, strict=True):
        assert gathered.keys() == whole.keys()
        assert all(torch.equal(gathered[name], tensor.to(dtype)) for name, tensor in whole.items())
        assert extra_bytes <= 2 * BUCKET_BYTES
    for nothing, extra_bytes in itertools.chain(*others):
        assert nothing == {}
        assert extra_bytes <= 2 * BUCKET_BYTES


def test_what_is_gathered_is_a_copy_in_host_memory_in_the_type_that_is_served() -> None:
    weight = torch.nn.Parameter(torch.arange(6, dtype=torch.float32).view(2, 3))
    whole = gather([("weight", weight)], torch.float32, True, BUCKET_BYTES)["weight"]
    with torch.no_grad():
        weight += 1  # the next step
    assert torch.equal(whole, torch.arange(6, dtype=torch.float32).view(2, 3))
    assert whole.device == torch.device("cpu")
    assert not whole.requires_grad
    assert gather([("weight", weight)], torch.bfloat16, True, BUCKET_BYTES)["weight"].dtype == torch.bfloat16
    assert gather([("weight", weight)], torch.float32, False, BUCKET_BYTES) == {}


def test_memory_that_is_given_back_is_written_over() -> None:
    weight = torch.randn(2, 3)
    first = gather([("weight", weight)], torch.float32, True, BUCKET_BYTES)
    second = gather([("weight", weight + 1)], torch.float32, True, BUCKET_BYTES, memory=first)
    assert second["weight"].data_ptr() == first["weight"].data_ptr()
    assert torch.equal(second["weight"], weight + 1)


def test_a_device_holds_two_buckets_beside_the_training_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the publish, computed with torch's fake tensors: its own rows being cast, and those of three ranks coming."""
    without_network = SimpleNamespace(
        get_world_size=lambda group: 4, P2POp=lambda *args, **kwargs: args, irecv=None, isend=None
    )
    monkeypatch.setattr(gather_module, "dist", without_network)
    monkeypatch.setattr(gather_module, "_run", lambda operations: None)
    with FakeTensorMode():
        local = torch.empty(250, 50, device="meta")
        shard: Any = SimpleNamespace(
            device_mesh=SimpleNamespace(get_group=lambda: None), to_local=lambda: local, shape=(1000, 50)
        )
        host = torch.empty(1000, 50, dtype=torch.bfloat16)
        num_rows = BUCKET_BYTES // 100
        with PeakBytes("meta") as memory:
            gather_module._collect(shard, host, torch.bfloat16, num_rows)
        assert 0 < memory.peak <= 2 * BUCKET_BYTES
        alone = torch.empty(1000, 50, device="meta")
        with PeakBytes("meta") as memory:
            gather_module._copy(alone, host, num_rows)
        assert 0 < memory.peak <= 2 * BUCKET_BYTES
