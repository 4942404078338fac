"""FSDP2 shards → whole tensors in host memory on learner rank 0. Done before any generator is paused.

Each rank sends rank 0 the rows that it holds, cast, a bucket at a time. So an accelerator holds two buckets beside the
training state, whatever the size of a parameter, and no rank but 0 holds anything of the others.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import cycle

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Shard

Tensors = dict[str, torch.Tensor]


def gather(
    parameters: Iterable[tuple[str, torch.Tensor]],
    dtype: torch.dtype,
    keep: bool,
    bucket_bytes: int,
    memory: Tensors | None = None,
) -> Tensors:
    """Every parameter, whole, in `dtype`, in host memory: complete when this returns.

    A collective: all ranks call it with the same parameters in the same order.

    Args:
        parameters: Hugging Face name → DTensor (any placement) or plain tensor.
        keep: True on rank 0; the others get an empty dict.
        bucket_bytes: no more than this, or one row, is on its way at a time; two on an accelerator.
        memory: of an earlier version that nobody needs any more, to be written over.
    """
    whole: Tensors = {}
    for name, parameter in parameters:
        tensor = parameter.detach()
        if isinstance(tensor, DTensor) and tensor.placements != (Shard(0),):
            tensor = tensor.full_tensor()
        host = _host_memory(tensor, dtype, (memory or {}).get(name)) if keep else None
        row_bytes = tensor[:1].numel() * dtype.itemsize if tensor.dim() else dtype.itemsize
        num_rows = max(1, bucket_bytes // max(1, row_bytes))
        if isinstance(tensor, DTensor):
            _collect(tensor, host, dtype, num_rows)
        elif host is not None:
            _copy(tensor, host, num_rows)
        if host is not None:
            whole[name] = host
    if torch.accelerator.is_available():
        torch.accelerator.current_stream().synchronize()
    return whole


def metas(parameters: Iterable[tuple[str, torch.Tensor]], dtype: torch.dtype) -> Tensors:
    """What `gather` will bring, as meta tensors. Local."""
    return {name: torch.empty(parameter.shape, dtype=dtype, device="meta") for name, parameter in parameters}


def _host_memory(tensor: torch.Tensor, dtype: torch.dtype, old: torch.Tensor | None) -> torch.Tensor:
    if old is not None:
        return old
    pinned = tensor.device.type != "cpu" and torch.accelerator.is_available()
    return torch.empty(tensor.shape, dtype=dtype, device="cpu", pin_memory=pinned)


def _copy(tensor: torch.Tensor, host: torch.Tensor, num_rows: int) -> None:
    """Cast on the way, at most `num_rows` at a time where they have to be cast on another device."""
    if tensor.device.type == "cpu" or not tensor.dim():
        host.copy_(tensor)
        return
    for mine, theirs in zip(host.split(num_rows), tensor.split(num_rows), strict=True):
        mine.copy_(theirs.to(host.dtype), non_blocking=True)


def _collect(tensor: DTensor, host: torch.Tensor | None, dtype: torch.dtype, num_rows: int) -> None:
    """In rounds: in each, every rank sends rank 0 its next rows, `num_rows` of them all together.

    Args:
        tensor: sharded by rows, the first ceil(rows ÷ ranks) on rank 0, as many on the next, and so on.
        host: on rank 0, where all go.
    """
    group, local = tensor.device_mesh.get_group(), tensor.to_local()
    num_ranks, rows = dist.get_world_size(group), tensor.shape[0]
    rows_of_rank = -(-rows // num_ranks)
    step = max(1, num_rows // max(1, num_ranks - 1))
    if host is None:
        for part in local.split(step) if local.numel() else ():
            _run([dist.P2POp(dist.isend, part.to(dtype).contiguous(), group=group, group_peer=0)])
        return
    _copy(local, host[: len(local)], num_rows)
    if num_ranks == 1:
        return
    buffers = cycle([torch.empty(0, dtype=dtype, device=local.device)] * 2)
    if local.device.type != "cpu":
        one = min(step, rows_of_rank) * (num_ranks - 1)
        buffers = cycle([torch.empty(one, *host.shape[1:], dtype=dtype, device=local.device) for _ in range(2)])
    for first in range(0, rows_of_rank, step):
        arriving = {}
        for rank in range(1, num_ranks):
            end = min(rows, (rank + 1) * rows_of_rank, rank * rows_of_rank + first + step)
            if (place := host[rank * rows_of_rank + first : end]).numel():
                arriving[rank] = place
        _receive(arriving, next(buffers), group)


def _receive(arriving: dict[int, torch.Tensor], buffer: torch.Tensor, group: dist.ProcessGroup) -> None:
    """Into host memory, by way of `buffer` where the group's memory is another."""
    through = arriving
    if buffer.device.type != "cpu":
        parts = buffer[: sum(map(len, arriving.values()))].split([len(place) for place in arriving.values()])
        through = dict(zip(arriving, parts, strict=True))
    _run([dist.P2POp(dist.irecv, part, group=group, group_peer=rank) for rank, part in through.items()])
    if through is not arriving:
        for rank, place in arriving.items():
            place.copy_(through[rank], non_blocking=True)


def _run(operations: list[dist.P2POp]) -> None:
    if operations:
        for work in dist.batch_isend_irecv(operations):
            work.wait()
