"""Each node has the devices that the run was planned for, and a driver that runs them."""

from __future__ import annotations

from asyncrl import devices
from asyncrl.errors import SelftestError
from asyncrl.selftest.checks.system.versions import machines_of
from asyncrl.selftest.result import Check, Figures
from asyncrl.selftest.system import System


def run(system: System) -> Figures:
    figures: Figures = {"device": system.config.cluster.device}
    for name, machine in machines_of(system).items():
        figures[name] = ", ".join(one.name for one in machine.accelerators) or f"{machine.num_cpus} CPUs"
        if machine.unsupported is not None:
            figures["unused"] = machine.unsupported
        if system.on_cpu:
            continue
        toolkit, driver = machine.versions["toolkit"], machine.versions.get("driver")
        if (problem := devices.driver_problem(toolkit, driver)) is not None:
            raise SelftestError(f"{name}: {problem}")
        if not machine.accelerators:
            raise SelftestError(f"{name} was placed on a GPU and torch ({toolkit}) sees none")
        kinds = {(one.name, one.total_bytes) for one in machine.accelerators}
        if len(kinds) > 1:
            raise SelftestError(f"{name} has devices of several kinds: {sorted(kinds)}")
    return figures


CHECK = Check(
    "devices",
    run,
    "Install NVIDIA's driver that the message names, or a torch for the driver that is there; `EXTRA=gpu make install` "
    "sets up the GPU build. AMD and Ascend devices are not supported: run with cluster.device=cpu.",
)
