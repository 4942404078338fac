"""Timings from a data sheet and a model's shape: rooflines, for hardware that nobody has measured yet. Pure.

P parameters, k = tensor_parallel, c bytes of the compute type, n running sequences, x tokens of context of each:

    decode step   t(n) = overhead + c·P / (k·memory) + n·(KV bytes of x tokens / memory + 2·P / (k·FLOP/s))
    prefill       2·P / (k·FLOP/s) a token
    training      2·P / FLOP/s a token for each forward pass, `passes.py`: 6·P in the simplest case
    publish       bytes ÷ link

2·P and 6·P FLOPs a token: Kaplan et al., arXiv 2001.08361, section 2.1. Memory and FLOP/s are the data sheet's peak
times `MEMORY_SHARE` and `FLOP_SHARE`. All of this is an estimate; once there is a run, `fit.py` corrects it.
"""

from __future__ import annotations

from dataclasses import dataclass

from asyncrl.cluster.memory import Estimate, bytes_per_value, estimate
from asyncrl.cluster.memory_advice import with_fitting_micro_batch
from asyncrl.cluster.topology import Topology
from asyncrl.cluster.version_bytes import published_bytes
from asyncrl.config.model_shape import ModelShape
from asyncrl.config.schema import Config
from asyncrl.simulate.passes import forward_passes
from asyncrl.simulate.timings import Timings, Workload

MEMORY_SHARE = 0.6
"""Of the peak bandwidth that decoding reaches; assumed."""
FLOP_SHARE = 0.35
"""Of the peak FLOP/s: torchtitan reaches 33 to 39 % on an 8B model, prime-rl 15 to 36 % on 4B, by their own pages."""
LINK_SHARE = 0.35
"""Of the link in a publish: NeMo-RL's shard-to-shard transfer; verl's broadcast reaches 16 to 19 %."""
SWITCH_S = 0.09
"""A pause that keeps the requests, 32 of them decoding; measured with vLLM 0.32 on a CPU."""


@dataclass(frozen=True)
class Accelerator:
    """One device. Peaks as its maker gives them; dense, in the type that is computed in."""

    flop_per_s: float
    memory_bytes_per_s: float
    memory_bytes: int
    link_bytes_per_s: float
    """Between nodes, for one device."""
    step_overhead_s: float
    """Of a decode step, besides arithmetic."""
    sequence_overhead_s: float
    """Of each running sequence in a step: scheduling, sampling, output."""


ACCELERATORS = {
    # NVIDIA H100 SXM data sheet; one 400 Gb/s port for each.
    "h100": Accelerator(989e12, 3.35e12, 80 * 10**9, 50e9, 3e-3, 1e-5),
    # NVIDIA A100 80GB SXM data sheet; one 200 Gb/s port for each.
    "a100": Accelerator(312e12, 2.039e12, 80 * 10**9, 25e9, 3e-3, 1e-5),
    # NVIDIA Ada architecture whitepaper, appendix A (bfloat16, float32 accumulation); PCIe 4.0 × 16.
    "rtx4090": Accelerator(165.2e12, 1.008e12, 24 * 10**9, 32e9, 3e-3, 1e-5),
    # One AVX2 core, float32: 55 GFLOP/s in matrix products, 0.13 GB/s over gloo, and vLLM's overheads on the
    # quickstart's model, all measured on one machine; 10 GB/s of memory is assumed.
    "cpu": Accelerator(55e9, 10e9, 16 * 2**30, 0.13e9, 3e-3, 1.5e-4),
}
"""The overheads of GPUs are assumed."""

KV_CACHE = "KV cache"
"""Its line in `cluster/memory.py`'s estimate of a generator."""

TINY_SHAPE = ModelShape(
    hidden_size=128,
    intermediate_size=384,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    vocab_size=16,
    max_positions=2048,
    num_parameters=396_000,
    num_layer_parameters=197_000,
    num_replicated_parameters=770,
)
"""About that of model.path=tiny, which is made at launch."""


def roofline(
    config: Config, shape: ModelShape, topology: Topology, accelerator: Accelerator, workload: Workload
) -> Timings:
    """What the data sheet promises for this configuration, placed so."""
    parts, compute_bytes = topology.tensor_parallel, bytes_per_value(config, topology)
    memory = accelerator.memory_bytes_per_s * MEMORY_SHARE
    flop_per_s = accelerator.flop_per_s * FLOP_SHARE
    link = accelerator.link_bytes_per_s * LINK_SHARE
    kv_bytes = shape.kv_bytes_per_token(parts, compute_bytes) * workload.context_mean
    forward_s = 2 * shape.num_parameters / flop_per_s
    uses_nccl = topology.publish_transport == "nccl"
    is_pipelined = uses_nccl and topology.publish_engine == "broadcast"
    of_parts = published_bytes(config, shape, topology, compute_bytes)
    num_copies = 1 if is_pipelined else len(topology.generators)  # slices go one by one
    weights_bytes = compute_bytes * shape.num_parameters
    return Timings(
        decode_base_s=accelerator.step_overhead_s + weights_bytes / parts / memory,
        decode_per_sequence_s=accelerator.sequence_overhead_s + kv_bytes / memory + forward_s / parts,
        prefill_per_token_s=forward_s / parts,
        max_sequences=_max_sequences(config, shape, topology, accelerator, workload),
        train_base_s=0.0,
        train_per_token_s=forward_passes(config) * forward_s,
        gather_s=(of_parts[0] if topology.publish_engine == "adapter" else weights_bytes) / link
        if len(topology.learners) > 1
        else 0.0,
        transfer_s=num_copies * (max(of_parts) if is_pipelined else sum(of_parts)) / link,
        stall_s=SWITCH_S,
        overlaps=not uses_nccl,
    )


def memory_of(config: Config, shape: ModelShape, topology: Topology, accelerator: Accelerator) -> list[Estimate]:
    """What each role takes, `cluster/memory.py`, on this accelerator."""
    config, _ = with_fitting_micro_batch(config, shape, topology, accelerator.memory_bytes)
    return estimate(config, shape, topology, accelerator.memory_bytes)


def _max_sequences(
    config: Config, shape: ModelShape, topology: Topology, accelerator: Accelerator, workload: Workload
) -> int:
    """What the KV cache has room for when each sequence has its mean context; at most what may be asked for."""
    asked = config.generator.max_groups_in_flight * config.algorithm.group_size
    kv_bytes = sum(
        item.num_bytes
        for holder in memory_of(config, shape, topology, accelerator)
        for item in holder.items
        if item.name == KV_CACHE
    )
    if kv_bytes == 0:
        return asked  # an engine of the user's own
    per_token = shape.kv_bytes_per_token(topology.tensor_parallel, bytes_per_value(config, topology))
    return max(1, min(asked, int(kv_bytes // (per_token * workload.context_mean))))
