"""What is installed: the same everywhere."""

from __future__ import annotations

from asyncrl.errors import SelftestError
from asyncrl.selftest.process import Machine
from asyncrl.selftest.result import Check, Figures
from asyncrl.selftest.system import System, wait


def run(system: System) -> Figures:
    machines = machines_of(system)
    first_name, first = next(iter(machines.items()))
    for name, machine in machines.items():
        for package in sorted(first.versions.keys() | machine.versions.keys()):
            here, there = first.versions.get(package, "none"), machine.versions.get(package, "none")
            if here != there:
                raise SelftestError(f"{package} is {here} where {first_name} runs and {there} where {name} runs")
    return dict(first.versions)


def machines_of(system: System) -> dict[str, Machine]:
    """By part."""
    asked = [(part.name, part.call("machine")) for part in [*system.learners, *system.generators]]
    limit_s = system.config.run.startup_timeout_s
    return {name: wait(future, limit_s, f"{name} to say what is installed") for name, future in asked}


CHECK = Check(
    "versions",
    run,
    "Install the same on every node: one virtual environment on a shared file system, or `make install` with the same "
    "constraints file on each.",
)
