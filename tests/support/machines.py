"""Machines on a network of their own: network namespaces of this one, on one bridge. Files and processes are shared."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

INTERFACE = "arl0"
"""On every machine."""
_LISTENER = re.compile(r"\s(\S+):(\d+)\s+\S+:\*\s.*?pid=(\d+)")


class NoMachinesError(Exception):
    """Why namespaces cannot be made here."""


@dataclass(frozen=True)
class Listener:
    host: str
    port: int
    pid: int


@dataclass(frozen=True)
class Machine:
    namespace: str
    address: str

    def command(self, *arguments: str) -> list[str]:
        """To be run there. The process is the command's own."""
        return ["ip", "netns", "exec", self.namespace, *arguments]

    def pids(self) -> list[int]:
        return [int(pid) for pid in _ip("netns", "pids", self.namespace).split()]

    def listeners(self) -> list[Listener]:
        """Every TCP port that a process there listens on."""
        shown = subprocess.run(self.command("ss", "-ltnpH"), capture_output=True, text=True, check=True).stdout
        return [Listener(host, int(port), int(pid)) for host, port, pid in _LISTENER.findall(shown)]


@contextmanager
def machines(number: int) -> Iterator[list[Machine]]:
    """Each reaches the others and nothing else. What still runs on them in the end is killed.

    Raises:
        NoMachinesError: not on Linux, not root, without iproute2 or without the right to make namespaces.
    """
    if shutil.which("ip") is None or shutil.which("ss") is None or os.getuid() != 0:
        raise NoMachinesError("network namespaces need root and iproute2")
    made: list[Machine] = []
    try:
        for index in range(number):
            machine = Machine(f"arl-{os.getpid()}-{index}", f"10.77.0.{index + 1}")
            _ip("netns", "add", machine.namespace)
            made.append(machine)
            _connect(made[0], machine, index)
        yield made
    finally:
        for machine in made:
            for pid in machine.pids():
                os.kill(pid, signal.SIGKILL)
            _ip("netns", "del", machine.namespace)


def _connect(first: Machine, machine: Machine, index: int) -> None:
    """The first has the bridge, each other one a cable to it."""
    if index == 0:
        _ip("-n", first.namespace, "link", "add", INTERFACE, "type", "bridge")
    else:
        plug = f"to{index}"
        other_end = ("type", "veth", "peer", "name", INTERFACE, "netns", machine.namespace)
        _ip("-n", first.namespace, "link", "add", plug, *other_end)
        _ip("-n", first.namespace, "link", "set", plug, "master", INTERFACE, "up")
    _ip("-n", machine.namespace, "address", "add", f"{machine.address}/24", "dev", INTERFACE)
    for interface in ("lo", INTERFACE):
        _ip("-n", machine.namespace, "link", "set", interface, "up")


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NoMachinesError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout
