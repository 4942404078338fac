"""What a publish needs of whatever carries its bytes. `gloo.py` and `nccl.py` have it."""

from __future__ import annotations

from typing import Protocol

import torch

from asyncrl.config.checks.publish import PublishTransport

ROOT = 0
"""Learner rank 0: every broadcast comes from it, every report goes to it."""


class Transfer(Protocol):
    """A tensor on its way."""

    def wait(self) -> None:
        """Until it has arrived, or has left, whole.

        Raises:
            RuntimeError: it did not within the group's time limit, or the group is broken.
        """


class Group(Protocol):
    """Learner rank 0 and the workers that receive the same. No wait in it is longer than its time limit."""

    device: torch.device
    """Where tensors lie that are broadcast."""

    def broadcast(self, tensor: torch.Tensor) -> Transfer:
        """From rank 0, in place; contiguous, on `device`."""

    def report(self, value: int) -> None:
        """From a worker to rank 0."""

    def reported(self, rank: int) -> int:
        """What this worker reports next; waits for it."""

    def abort(self) -> None:
        """Nothing goes over it any more. May be called from any thread, and more than once."""


def device_of(transport: PublishTransport) -> torch.device:
    """Where tensors lie that this transport carries: in host memory for gloo, else on this process's accelerator.

    Each thread has a current device of its own. So ask in the thread that set it.
    """
    accelerator = torch.accelerator.current_accelerator() if transport == "nccl" else None
    if accelerator is None:
        return torch.device("cpu")
    return torch.device(accelerator.type, torch.accelerator.current_device_index())
