"""The order of work on an accelerator, where a call returns before its work has ended. Nothing to do on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """What a publish starts in this block runs beside the streams of the model, and has ended when the block ends.

    Packing, broadcasts and putting in place are all ordered by this one stream: torch's process groups begin after what
    is on the current stream.
    """
    if device.type == "cpu":
        yield
        return
    stream = torch.Stream(device=device)
    stream.wait_stream(torch.accelerator.current_stream(device))
    with stream:
        yield
    stream.synchronize()
