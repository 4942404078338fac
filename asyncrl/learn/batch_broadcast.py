"""How every learner rank comes to hold the same batch: rank 0 gets it from replay, the others from rank 0.

    rank 0   replay ── header, frames ──▶ one buffer ── broadcast ──▶ every rank decodes the same bytes

A buffer of length 0 says: stop. msgpack and raw arrays, no pickle; `wire.check_group` holds on every rank.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import torch
import torch.distributed as dist

from asyncrl.transport.messages.learning import BatchReply
from asyncrl.transport.wire import FRAMES_PER_GROUP, Frame, group_from_wire
from asyncrl.types import Batch


class _Envelope(msgspec.Struct):
    reply: BatchReply
    frame_bytes: list[int]


def broadcast_from_rank_0(value: int) -> int:
    """Rank 0's number, on every rank. Collective."""
    shared = torch.tensor([value])
    dist.broadcast(shared, src=0)
    return int(shared.item())


def broadcast_batch(received: tuple[BatchReply, Sequence[Frame]] | None) -> Batch | None:
    """The batch of this step on every rank; None = stop. Collective over the default (CPU) group.

    Args:
        received: on rank 0 what replay sent, or None to stop; ignored on the others.
    """
    payload = _pack(*received) if received is not None and dist.get_rank() == 0 else torch.empty(0, dtype=torch.uint8)
    size = torch.tensor([payload.numel()], dtype=torch.int64)
    dist.broadcast(size, src=0)
    if size.item() == 0:
        return None
    if dist.get_rank() != 0:
        payload = torch.empty(int(size.item()), dtype=torch.uint8)
    dist.broadcast(payload, src=0)
    return _unpack(payload)


def _pack(reply: BatchReply, frames: Sequence[Frame]) -> torch.Tensor:
    header = msgspec.msgpack.encode(_Envelope(reply, [memoryview(frame).nbytes for frame in frames]))
    whole = bytearray(b"".join([len(header).to_bytes(8, "little"), header, *frames]))
    return torch.frombuffer(whole, dtype=torch.uint8)


def _unpack(payload: torch.Tensor) -> Batch:
    view = payload.numpy().data
    start = 8 + int.from_bytes(view[:8], "little")
    envelope = msgspec.msgpack.decode(view[8:start], type=_Envelope)
    frames: list[Frame] = []
    for num_bytes in envelope.frame_bytes:
        frames.append(view[start : start + num_bytes])
        start += num_bytes
    reply = envelope.reply
    groups = [
        group_from_wire(header, frames[FRAMES_PER_GROUP * k : FRAMES_PER_GROUP * (k + 1)])
        for k, header in enumerate(reply.headers)
    ]
    return Batch(reply.step, groups, reply.next_step, reply.queue_depth, reply.eta)
