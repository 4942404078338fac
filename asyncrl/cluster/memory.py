"""Estimates of each role's memory, from the model's shape alone, without allocator slack and kernels' workspaces.

P parameters, of which R outside the layers; an adapter has A, of a bytes each on their way, and changes D of the P;
h hidden size, H heads, K KV heads, d head size, I intermediate size, L layers, V vocabulary; c bytes of the compute
type; M learner ranks; k = tensor_parallel; B, G, η as everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

from asyncrl.cluster.activations import activation_values, kept_values
from asyncrl.cluster.topology import Topology
from asyncrl.cluster.version_bytes import (
    adapted_layers,
    first_version_bytes,
    num_adapter_parameters,
    published_adapter_bytes,
)
from asyncrl.config.engines import engine_names
from asyncrl.config.model_shape import ModelShape
from asyncrl.config.schema import CPU_KV_CACHE_BYTES, SGLANG, VLLM, Config
from asyncrl.learn.policy.logit_chunks import BYTES_PER_LOGIT, chunk_bytes
from asyncrl.publish.staging_memory import ENGINE_OVERHEAD_BYTES, SecondCopy

ASSUMED_GPU_BYTES = 80 * 10**9
"""Where no GPU can be asked: an 80 GB A100 or H100."""

BYTES_PER_SAMPLED_TOKEN = 12
"""Token int32, logprob float32, version int32: `types.Group`."""


@dataclass(frozen=True)
class Item:
    """One line of an estimate."""

    name: str
    num_bytes: float
    formula: str


@dataclass(frozen=True)
class Estimate:
    """What one process holds at its peak in one kind of memory."""

    holder: str
    items: list[Item]
    on_gpu: bool = False
    note: str = ""

    @property
    def num_bytes(self) -> float:
        return sum(item.num_bytes for item in self.items)


def estimate(config: Config, shape: ModelShape, topology: Topology, gpu_bytes: int | None = None) -> list[Estimate]:
    """Estimates for a learner rank, a generator worker (of vLLM, on a CPU also of SGLang) and replay.

    Args:
        config: a checked configuration.
        shape: of the model.
        topology: gives the number of ranks and the device.
        gpu_bytes: memory of one GPU where it is known; else `ASSUMED_GPU_BYTES`.
    """
    compute_bytes = bytes_per_value(config, topology)
    gpu_bytes = gpu_bytes or ASSUMED_GPU_BYTES
    estimates = _learner(config, shape, topology, compute_bytes, gpu_bytes)
    estimated = {VLLM, SGLANG} if topology.device == "cpu" else {VLLM}
    if estimated & set(engine_names(config.generator)):
        estimates += _generator(config, shape, topology, compute_bytes, gpu_bytes)
    return [*estimates, _replay(config)]


def bytes_per_value(config: Config, topology: Topology) -> int:
    """Bytes of one value of the compute type. Weights are published in this type too."""
    if config.model.dtype == "auto":
        return 2 if topology.device == "gpu" else 4
    return 2 if config.model.dtype == "bfloat16" else 4


def _learner(
    config: Config, shape: ModelShape, topology: Topology, compute_bytes: int, gpu_bytes: int
) -> list[Estimate]:
    on_gpu = topology.device == "gpu"
    num_ranks, parameters = len(topology.learners), shape.num_parameters
    state = _trained_state(config, shape, num_ranks, compute_bytes)
    work = [
        *_gathered(config, shape, compute_bytes),
        _activations(config, shape, compute_bytes),
        _logits(config, shape, gpu_bytes if on_gpu else None),
    ]
    reference = Item("reference, float32", 4 * parameters / num_ranks, "4·P/M")
    host = [Item("while loading: this rank's shards, float32", 4 * parameters / num_ranks, "4·P/M, freed on the GPU")]
    held = _versions(config, shape, topology, compute_bytes)
    held.append(_checkpoint_copy(config, shape, num_ranks))
    (host if on_gpu else work).extend(held)
    if topology.publish_transport == "nccl":
        work.append(_two_buckets("publish, rank 0: two buckets", config, shape, topology, compute_bytes))
    elif on_gpu:
        work.append(Item("publish: two buckets, while gathering", 2 * config.publish.bucket_bytes, "2·bucket_bytes"))
    if config.algorithm.kl_coef > 0 and config.lora.rank is None:
        (host if on_gpu and config.learner.offload_reference else work).append(reference)
    if not on_gpu:
        return [Estimate("a learner rank", state + work)]
    if config.learner.offload:
        host += state
    else:
        work = state + work
    return [Estimate("a learner rank", work, on_gpu=True), Estimate("a learner rank", host)]


def _trained_state(config: Config, shape: ModelShape, num_ranks: int, compute_bytes: int) -> list[Item]:
    parameters, adapter = shape.num_parameters / num_ranks, num_adapter_parameters(config.lora, shape) / num_ranks
    if config.lora.rank is not None:
        return [
            Item("frozen weights", compute_bytes * parameters, "c·P/M"),
            Item("adapter, gradients, AdamW moments, float32", 16 * adapter, "16·A/M"),
        ]
    return [
        Item("master weights, float32", 4 * parameters, "4·P/M"),
        Item("gradients, float32", 4 * parameters, "4·P/M"),
        Item("AdamW moments, float32", 8 * parameters, "8·P/M"),
    ]


def _gathered(config: Config, shape: ModelShape, compute_bytes: int) -> list[Item]:
    """Weights and gradients that are whole on each rank, by learner.keep_gathered."""
    num_gathered = shape.num_root_parameters + 2 * shape.num_layer_parameters
    weights = Item("gathered weights: root and two layers", compute_bytes * num_gathered, "c·(R + 2·layer)")
    if config.learner.keep_gathered == "all":
        weights = Item("gathered weights", compute_bytes * shape.num_parameters, "c·P")
    items = [weights, _unit_gradient(config, shape, compute_bytes)]
    if config.learner.keep_gathered != "nothing":
        adapter = num_adapter_parameters(config.lora, shape)
        trained, formula = (shape.num_parameters, "4·P") if config.lora.rank is None else (adapter, "4·A")
        items.append(Item("gradients added up, whole, float32", 4 * trained, formula))
    return items


def _unit_gradient(config: Config, shape: ModelShape, compute_bytes: int) -> Item:
    if config.lora.rank is not None:
        of_a_layer = num_adapter_parameters(config.lora, shape) / shape.num_layers
        return Item("one layer's whole gradient", (compute_bytes + 4) * of_a_layer, "(c + 4)·A/L")
    largest_unit = max(shape.num_root_parameters, shape.num_layer_parameters)
    return Item("one unit's whole gradient", (compute_bytes + 4) * largest_unit, "(c + 4)·max(R, layer)")


def _versions(config: Config, shape: ModelShape, topology: Topology, compute_bytes: int) -> list[Item]:
    """What rank 0 keeps of the policy for the generators."""
    whole = compute_bytes * shape.num_parameters
    if topology.publish_engine == "adapter":
        two_adapters = 2 * published_adapter_bytes(config, shape, compute_bytes)
        return [
            Item("publish, rank 0: the base weights, for newcomers", whole, "c·P"),
            Item("publish, rank 0: the adapter, new and last", two_adapters, "2·a·A"),
        ]
    held = [Item("publish, rank 0: the whole policy, for newcomers", whole, "c·P")]
    if topology.publish_engine == "delta":
        held.append(Item("publish, rank 0: the one before, for deltas", whole, "c·P"))
    return held


def _checkpoint_copy(config: Config, shape: ModelShape, num_ranks: int) -> Item:
    name = "checkpoint: the copy that is written"
    if config.lora.rank is not None:
        return Item(name, 12 * num_adapter_parameters(config.lora, shape) / num_ranks, "12·A/M")
    return Item(name, 12 * shape.num_parameters / num_ranks, "12·P/M")


def _activations(config: Config, shape: ModelShape, compute_bytes: int) -> Item:
    num_tokens = config.learner.known_micro_batch_tokens
    per_layer = compute_bytes * num_tokens * activation_values(shape)
    if config.learner.gradient_checkpointing:
        values, formula = kept_values(shape, config.learner.checkpointing_keeps)
        kept = compute_bytes * num_tokens * values * shape.num_layers
        name = f"activations of {num_tokens} tokens, checkpointed"
        return Item(name, kept + per_layer, f"c·T·(L·({formula}) + 6h + 4(H+K)d + 4I)")
    return Item(f"activations of {num_tokens} tokens", per_layer * shape.num_layers, "c·T·L·(6h + 4(H+K)d + 4I)")


def _logits(config: Config, shape: ModelShape, gpu_bytes: int | None) -> Item:
    all_logits = BYTES_PER_LOGIT * config.learner.known_micro_batch_tokens * shape.vocab_size
    most = "2²³" if gpu_bytes is None else "1/64 of the GPU"
    return Item("logits of one chunk, float32", min(chunk_bytes(gpu_bytes), all_logits), f"12·T·V, at most {most}")


def _two_buckets(name: str, config: Config, shape: ModelShape, topology: Topology, compute_bytes: int) -> Item:
    """Where bytes do not stay where they come. Slices are cut to buckets, whole tensors are not."""
    if topology.publish_engine != "broadcast":
        return Item(name, 2 * config.publish.bucket_bytes, "2·publish.bucket_bytes")
    largest = compute_bytes * shape.hidden_size * max(shape.vocab_size, shape.intermediate_size)
    return Item(name, 2 * max(config.publish.bucket_bytes, largest), "2·max(publish.bucket_bytes, largest tensor)")


def _generator(
    config: Config, shape: ModelShape, topology: Topology, compute_bytes: int, gpu_bytes: int
) -> list[Estimate]:
    parts = topology.tensor_parallel
    weights = compute_bytes * shape.num_parameters / parts
    items = [Item("weights", weights, "c·P/k")]
    staged: list[Item] = []
    spare = second_copy(config, shape, topology)
    kv_cache_bytes, utilization = config.generator.kv_cache_bytes, config.generator.gpu_memory_utilization
    spare_fits = spare is not None and spare.fits(gpu_bytes, utilization, kv_cache_bytes)
    if config.publish.staged:
        next_version = Item("publish: the next version", weights, "c·P/k")
        if topology.publish_engine == "adapter":
            num_changed = sum(layer.num_inputs * layer.num_outputs for layer in adapted_layers(config.lora, shape))
            changed_bytes = compute_bytes * num_changed / parts
            if not spare_fits:
                next_version = Item("publish: what an adapter changes, next", changed_bytes, "c·D/k")
            staged.append(Item("publish: the base of that", changed_bytes, "c·D/k"))
        (items if spare_fits else staged).append(next_version)
        if topology.publish_engine == "delta":
            staged.append(Item("publish: the last version, for deltas", weights, "c·P/k"))
    if topology.publish_transport == "nccl":
        items.append(_two_buckets("publish: two buckets", config, shape, topology, compute_bytes))
    else:
        bucket = min(config.publish.bucket_bytes, max(first_version_bytes(shape, topology, compute_bytes)))
        staged.append(Item("publish: two buckets", 2 * bucket, "2·publish.bucket_bytes"))
    if topology.device == "cpu":
        items += staged
    per_token = shape.kv_bytes_per_token(parts, compute_bytes)
    if kv_cache_bytes is not None or topology.device == "cpu":
        kv_bytes: float = kv_cache_bytes or CPU_KV_CACHE_BYTES
        source = "generator.kv_cache_bytes"
    else:
        taken = weights + ENGINE_OVERHEAD_BYTES + (weights if spare_fits else 0)
        kv_bytes = max(0.0, utilization * gpu_bytes - taken)
        items.append(Item("engine: activations, graphs, context", ENGINE_OVERHEAD_BYTES, "assumed"))
        source = f"{utilization:g} × {gpu_bytes / 1e9:.0f} GB − weights{' twice' if spare_fits else ''} − engine"
    items.append(Item("KV cache", kv_bytes, source))
    num_tokens = int(kv_bytes // per_token)
    longest = config.data.max_prompt_tokens + config.generator.max_tokens
    note = (
        f"KV {per_token:,} bytes a token: room for {num_tokens:,} tokens, or {num_tokens // longest:,} completions of "
        f"{longest} tokens with their prompts; one generator is asked for "
        f"{config.generator.max_groups_in_flight * config.algorithm.group_size:,} at once"
    )
    if topology.device == "cpu":
        return [Estimate("a generator worker", items, note=note)]
    on_host = [Estimate("a generator worker", staged)] if staged else []
    return [Estimate("a generator worker", items, on_gpu=True, note=note), *on_host]


def second_copy(config: Config, shape: ModelShape, topology: Topology) -> SecondCopy | None:
    """What staging in GPU memory would take of one worker; None where versions are put together elsewhere."""
    if topology.device == "cpu" or not config.publish.staged or topology.publish_engine == "delta":
        return None
    compute_bytes = bytes_per_value(config, topology)
    longest = config.data.max_prompt_tokens + config.generator.max_tokens
    num_completions = config.generator.max_groups_in_flight * config.algorithm.group_size
    kv_bytes = shape.kv_bytes_per_token(topology.tensor_parallel, compute_bytes) * longest * num_completions
    return SecondCopy(compute_bytes * shape.num_parameters / topology.tensor_parallel, kv_bytes)


def _replay(config: Config) -> Estimate:
    num_groups = (config.replay.max_staleness + 1) * config.learner.batch_size
    bytes_per_token, per_token = BYTES_PER_SAMPLED_TOKEN, "12"
    if (top_k := config.generator.top_k) > 0:
        bytes_per_token, per_token = bytes_per_token + 4 + 4 * top_k, "(16 + 4·top_k)"
    completions = bytes_per_token * config.algorithm.group_size * config.generator.max_tokens
    num_bytes = num_groups * (completions + 4 * config.data.max_prompt_tokens)
    formula = f"(η+1)·B·({per_token}·G·max_tokens + 4·max_prompt_tokens)"
    return Estimate("replay", [Item(f"{num_groups:,} groups at most", num_bytes, formula)])
