"""How a learner rank fits into its memory, by the estimates of `memory.py`: the tokens of a micro-batch, or what else
would help."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from asyncrl import devices
from asyncrl.cluster.machine import host_bytes
from asyncrl.cluster.memory import ASSUMED_GPU_BYTES, bytes_per_value, estimate
from asyncrl.cluster.topology import Placement, Topology
from asyncrl.config.lora import LoraConfig
from asyncrl.config.model_shape import ModelShape
from asyncrl.config.schema import Config

FILLED_SHARE = {4: 0.9, 2: 0.75}
"""Bytes of a value → of its memory that a rank may fill by the estimate, which has no allocator slack and, in bfloat16,
a fifth too little for activations (`activations.py`)."""

Change = tuple[str, Config]
"""key=value, and the configuration with it."""


def gpu_memory(topology: Topology) -> tuple[int, list[str]]:
    """Bytes of this machine's first GPU, or of an assumed one, which is said. Without GPUs torch need not be loaded."""
    here_bytes = devices.memory_bytes() if topology.device == "gpu" else ASSUMED_GPU_BYTES
    if here_bytes is not None:
        return here_bytes, []
    return ASSUMED_GPU_BYTES, [
        f"memory is for GPUs of {ASSUMED_GPU_BYTES / 1e9:.0f} GB, as this machine has none to ask"
    ]


def learner_notes(config: Config, shape: ModelShape, topology: Topology, gpu_bytes: int) -> list[str]:
    """Whether a learner rank fits; if not, what would make it fit, and if so, what there is room for.

    Args:
        gpu_bytes: of a GPU; read only where there are any.
    """
    on_gpu = topology.device == "gpu"
    room = _room(config, topology, gpu_bytes, topology.learners)
    needed = rank_bytes(config, shape, topology, gpu_bytes)
    if needed <= room:
        return _spare_memory_notes(config, shape, topology, gpu_bytes) if on_gpu else []
    ways = ways_to_fit(config, shape, topology, room, gpu_bytes)
    answer = f"by the estimate it fits with {', or '.join(ways)}" if ways else "no setting of one rank is enough"
    where = f"a GPU has {room / 1e9:.3g} for it" if on_gpu else f"this machine has {room / 1e9:.3g} for each"
    return [f"a learner rank needs about {needed / 1e9:.3g} GB and {where}: {answer}; more learners share its state"]


def _room(config: Config, topology: Topology, gpu_bytes: int, sharing: list[Placement]) -> float:
    """Bytes for a rank: what a generator leaves of its GPU, or an even share of a host among `sharing` on one node."""
    if topology.device == "gpu":
        return gpu_bytes * (1 - config.generator.gpu_memory_utilization if config.cluster.share_gpu else 1)
    return host_bytes() / max(Counter(placement.node for placement in sharing).values())


def _spare_memory_notes(config: Config, shape: ModelShape, topology: Topology, gpu_bytes: int) -> list[str]:
    """What several ranks could hold whole, where they gather and reduce for each micro-batch."""
    if config.learner.keep_gathered != "nothing" or len(topology.learners) == 1:
        return []
    for keeps, spares in (("all", "weights are gathered and gradients"), ("gradients", "gradients are")):
        keeping = replace(config, learner=replace(config.learner, keep_gathered=keeps))
        if rank_bytes(keeping, shape, topology, gpu_bytes) <= FILLED_SHARE[2] * gpu_bytes:
            often = "once an update, not once a micro-batch"
            return [f"memory is left for learner.keep_gathered={keeps}: {spares} reduced {often}"]
    return []


def with_fitting_micro_batch(
    config: Config, shape: ModelShape, topology: Topology, gpu_bytes: int
) -> tuple[Config, list[str]]:
    """learner.micro_batch_tokens=null becomes as many as fit, or what a rank holds of the longest sequence; says so.

    Args:
        gpu_bytes: of a GPU; read only where there are any.
    """
    if config.learner.micro_batch_tokens is not None:
        return config, []

    def having(num_tokens: int) -> Config:
        return replace(config, learner=replace(config.learner, micro_batch_tokens=num_tokens))

    least, num_sharing = config.least_micro_batch_tokens, len(topology.learners) // config.learner.context_parallel
    num_completions = -(-config.learner.batch_size * config.algorithm.group_size // num_sharing)
    candidates = range(least + 1, least * num_completions + 1)
    room = FILLED_SHARE[bytes_per_value(config, topology)] * _room(config, topology, gpu_bytes, topology.placements)
    num_fitting = bisect_right(
        candidates, room, key=lambda num_tokens: rank_bytes(having(num_tokens), shape, topology, gpu_bytes)
    )
    num_tokens = least + num_fitting
    return having(num_tokens), [f"learner.micro_batch_tokens=null: {num_tokens:,} by the estimate of a rank's memory"]


def ways_to_fit(
    config: Config, shape: ModelShape, topology: Topology, memory_bytes: float, gpu_bytes: int | None = None
) -> list[str]:
    """Settings with which a learner rank takes no more than `memory_bytes`: each that is enough alone.

    Where none is, the fewest of them together, in the order in which they cost speed; empty where all are not enough.

    Args:
        gpu_bytes: as in `estimate`.
    """

    def fits(candidate: Config) -> bool:
        return rank_bytes(candidate, shape, topology, gpu_bytes) <= memory_bytes

    alone = [name for name, changed in _changes(config, topology, fits) if fits(changed)]
    if alone:
        return alone
    names: list[str] = []
    while changes := _changes(config, topology, fits):
        name, config = changes[0]
        names.append(name)
        if fits(config):
            return [" with ".join(names)]
    return []


def rank_bytes(config: Config, shape: ModelShape, topology: Topology, gpu_bytes: int | None = None) -> float:
    """What a learner rank takes: of its GPU, where it has one, else of the host."""
    return next(
        item.num_bytes
        for item in estimate(config, shape, topology, gpu_bytes)
        if item.holder == "a learner rank" and item.on_gpu == (topology.device == "gpu")
    )


def _changes(config: Config, topology: Topology, fits: Callable[[Config], bool]) -> list[Change]:
    """What is not yet so, the cheapest in speed first; the last one trains something else."""
    learner = config.learner
    changes = _smaller_micro_batch(config, fits)
    if learner.keep_gathered != "nothing":
        sharded = replace(learner, keep_gathered="nothing")
        changes.append(("learner.keep_gathered=nothing", replace(config, learner=sharded)))
    if learner.checkpointing_keeps != "nothing":
        recomputed = replace(learner, checkpointing_keeps="nothing")
        changes.append(("learner.checkpointing_keeps=nothing", replace(config, learner=recomputed)))
    if not learner.gradient_checkpointing:
        checkpointed = replace(learner, gradient_checkpointing=True)
        changes.append(("learner.gradient_checkpointing=true", replace(config, learner=checkpointed)))
    if topology.device == "gpu" and not learner.offload:
        changes.append(("learner.offload=true", replace(config, learner=replace(learner, offload=True))))
    if config.lora.rank is None:
        changes.append(("lora.rank=16", replace(config, lora=LoraConfig(rank=16))))
    return changes


def _smaller_micro_batch(config: Config, fits: Callable[[Config], bool]) -> list[Change]:
    """Halved until it fits, or until the rank's part of the longest sequence fills it."""
    least = config.least_micro_batch_tokens
    smaller = config
    while not fits(smaller) and (num_tokens := smaller.learner.known_micro_batch_tokens) > least:
        learner = replace(smaller.learner, micro_batch_tokens=max(least, num_tokens // 2))
        smaller = replace(smaller, learner=learner)
    return [(f"learner.micro_batch_tokens={smaller.learner.micro_batch_tokens}", smaller)] if smaller != config else []
