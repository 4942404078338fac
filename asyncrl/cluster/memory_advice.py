"""What would make a learner rank fit, by the estimates of `memory.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from asyncrl.cluster.memory import estimate
from asyncrl.cluster.topology import Topology
from asyncrl.config.lora import LoraConfig
from asyncrl.config.model_shape import ModelShape
from asyncrl.config.schema import Config

Change = tuple[str, Config]
"""key=value, and the configuration with it."""


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
    """Halved until it fits, or until the longest sequence, which is never cut, fills it."""
    longest = config.data.max_prompt_tokens + config.generator.max_tokens
    smaller = config
    while not fits(smaller) and (num_tokens := smaller.learner.micro_batch_tokens) > longest:
        learner = replace(smaller.learner, micro_batch_tokens=max(longest, num_tokens // 2))
        smaller = replace(smaller, learner=learner)
    return [(f"learner.micro_batch_tokens={smaller.learner.micro_batch_tokens}", smaller)] if smaller != config else []
