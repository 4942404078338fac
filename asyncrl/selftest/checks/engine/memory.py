"""What a learner rank and a generator worker held at their peak, against what `asyncrl check` predicts."""

from __future__ import annotations

from asyncrl.cluster.memory import Estimate
from asyncrl.errors import SelftestError
from asyncrl.selftest.process import Memory
from asyncrl.selftest.result import Check, Figures, NotHereError
from asyncrl.selftest.system import Part, System, wait

MOST_SHARE = 1.25
MARGIN_BYTES = 1 << 30
"""Libraries, contexts and allocators, which no estimate counts."""


def run(system: System) -> Figures:
    if not system.estimates:
        raise NotHereError("there is no prediction")
    figures: Figures = {}
    parts = [("a learner rank", part) for part in system.learners]
    parts += [("a generator worker", part) for part in system.generators]
    for holder, part in parts:
        reached = _reached(system, part)
        for estimate in [one for one in system.estimates if one.holder == holder]:
            figures |= _compare(part.name, estimate, reached)
    return figures


def _reached(system: System, part: Part) -> Memory:
    memory: Memory = wait(part.call("memory"), system.config.publish.timeout_s, f"{part.name} to tell its memory")
    return memory


def _compare(name: str, estimate: Estimate, reached: Memory) -> Figures:
    kind = "device" if estimate.on_gpu else "host"
    reached_bytes = reached.device_bytes if estimate.on_gpu else reached.host_bytes
    most_bytes = MOST_SHARE * estimate.num_bytes + MARGIN_BYTES
    if reached_bytes > most_bytes:
        raise SelftestError(
            f"{name} held {reached_bytes / 1e9:.2f} GB of {kind} memory, and {estimate.num_bytes / 1e9:.2f} GB were "
            f"predicted (tolerated: {most_bytes / 1e9:.2f})"
        )
    return {
        f"{name} {kind} reached_GB": reached_bytes / 1e9,
        f"{name} {kind} predicted_GB": estimate.num_bytes / 1e9,
    }


CHECK = Check(
    "memory",
    run,
    "A run may end out of memory where `asyncrl check` says that it fits. Leave more room: more learners, "
    "learner.offload, fewer learner.micro_batch_tokens, a lower generator.gpu_memory_utilization. Report the figures.",
)
