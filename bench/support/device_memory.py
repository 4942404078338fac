"""The device that is measured: waiting for it, and the most of its memory that a process held."""

from __future__ import annotations

from pathlib import Path

import torch


def finish(device: str) -> None:
    """Waits until the device has computed all that it was given."""
    if device != "cpu":
        torch.cuda.synchronize()


class Peak:
    """Most bytes that this process holds from now on, beyond what it holds now.

    On a GPU what torch has allocated there, on the CPU resident memory.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        if device == "cpu":
            Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
            self._before = status_bytes("VmRSS")
        else:
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()

    @property
    def num_bytes(self) -> int:
        most = status_bytes("VmHWM") if self._device == "cpu" else torch.cuda.max_memory_allocated()
        return most - self._before


def status_bytes(field: str) -> int:
    """Of this process: `VmRSS` is what it has in memory now, `VmHWM` the most so far, `RssAnon` without files."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}: this needs Linux")
