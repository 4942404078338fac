"""Who is in a gloo group: only who can read its store.

Gloo takes whoever connects first and names the right number, and the numbers can be guessed. So before anything else
travels, each two members show each other that they know a secret which rank 0 left in the store. A proof is good for
one group, one direction and one pair.

It keeps out who takes a member's place. It does not keep out who sits on the way between two members and passes on what
they say: gloo neither encrypts nor signs. NCCL asks for a number of its own, which is in the store too.
"""

from __future__ import annotations

import hmac
import logging
import secrets
from typing import Protocol

import torch
from torch.distributed import Store

from asyncrl.publish.groups.base import Transfer

log = logging.getLogger(__name__)

SECRET = "secret"
PROOF_BYTES = 32
TAG = 1
"""Reports have 0."""


class Peers(Protocol):
    """A process group of torch's."""

    def send(self, tensors: list[torch.Tensor], rank: int, tag: int) -> Transfer: ...

    def recv(self, tensors: list[torch.Tensor], rank: int, tag: int) -> Transfer: ...


def require_members(group: Peers, store: Store, rank: int, world_size: int) -> None:
    """Returns once each other rank has shown that it belongs to the group.

    Raises:
        RuntimeError: one has not, or not within the group's time limit. Nothing else has been sent or received.
    """
    if rank == 0:
        store.set(SECRET, secrets.token_hex(PROOF_BYTES))
    secret = store.get(SECRET)
    others = [other for other in range(world_size) if other != rank]
    received = {other: torch.empty(PROOF_BYTES, dtype=torch.uint8) for other in others}
    transfers = [(other, group.recv([received[other]], other, TAG)) for other in others]
    transfers += [(other, group.send([_tensor(_proof(secret, rank, other))], other, TAG)) for other in others]
    for other, transfer in transfers:
        try:
            transfer.wait()
        except RuntimeError as error:
            _refuse(rank, other, str(error).partition("\n")[0])
            raise
    for other in others:
        if not hmac.compare_digest(bytes(received[other].tolist()), _proof(secret, other, rank)):
            raise RuntimeError(_refuse(rank, other, "it does not know the group's secret"))


def _proof(secret: bytes, sender: int, receiver: int) -> bytes:
    return hmac.digest(secret, f"{sender} to {receiver}".encode(), "sha256")


def _tensor(proof: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(proof), dtype=torch.uint8)


def _refuse(rank: int, other: int, reason: str) -> str:
    message = f"rank {rank} of a process group refused whoever came as rank {other}: {reason}"
    log.error(message)
    return message
