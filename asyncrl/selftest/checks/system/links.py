"""How fast bytes go where weights go: from learner 0 to each generator, and from each learner to the next."""

from __future__ import annotations

from asyncrl.errors import SelftestError
from asyncrl.selftest.result import Check, Figures
from asyncrl.selftest.system import Part, System, wait

NUM_BYTES = 64 << 20
SLOWEST_SHARE = 0.1
"""Of the fastest link; a slower one goes another way than the others."""


def run(system: System) -> Figures:
    first = system.learners[0]
    pairs = [(first, generator) for generator in system.generators]
    pairs += list(zip(system.learners, system.learners[1:], strict=False))
    speeds = {f"{one.name} → {other.name}": bytes_per_s(system, one, other) for one, other in pairs}
    figures: Figures = {f"{pair} GB/s": speed / 1e9 for pair, speed in speeds.items()}
    slowest, fastest = min(speeds, key=speeds.__getitem__), max(speeds, key=speeds.__getitem__)
    if speeds[slowest] < SLOWEST_SHARE * speeds[fastest]:
        raise SelftestError(
            f"{slowest} carries {speeds[slowest] / 1e9:.2g} GB/s and {fastest} {speeds[fastest] / 1e9:.2g} GB/s"
        )
    return figures


def bytes_per_s(system: System, one: Part, other: Part) -> float:
    """From one to the other, over what publishes go over."""
    transport, limit_s = system.config.publish.transport, system.config.publish.timeout_s
    file = system.new_rendezvous()
    opening = [part.call("open_link", file, transport, rank, limit_s) for rank, part in enumerate((one, other))]
    what = f"a link from {one.name} to {other.name}"
    for future in opening:
        wait(future, 2 * limit_s, what)
    receiving, sending = other.call("receive_over_link", NUM_BYTES), one.call("send_over_link", NUM_BYTES)
    duration_s: float = wait(sending, 8 * limit_s, what)
    wait(receiving, limit_s, what)
    for part in (one, other):
        wait(part.call("close_link"), limit_s, what)
    return NUM_BYTES / duration_s


CHECK = Check(
    "links",
    run,
    "Look which network interface each node uses (NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME; NCCL_DEBUG=INFO says what "
    "NCCL chose), and whether a node's GPUs and network cards hang on different sockets.",
)
