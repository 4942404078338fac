"""How many bytes a version has on its way to the generators, and an adapter values, from the model's shape alone."""

from __future__ import annotations

from asyncrl.cluster.topology import Topology
from asyncrl.config.lora import LoraConfig
from asyncrl.config.model_shape import LinearLayer, ModelShape
from asyncrl.config.schema import Config

VOCABULARY_MULTIPLE = 64
"""vLLM pads the vocabulary to it."""


def published_bytes(config: Config, shape: ModelShape, topology: Topology, compute_bytes: int) -> list[float]:
    """Bytes that each tensor-parallel worker of a generator receives for one version.

    With `adapter` the adapter, with every other engine as many as for the first version; with `delta` at most.
    """
    if topology.publish_engine == "adapter":
        return [published_adapter_bytes(config, shape, compute_bytes)] * topology.tensor_parallel
    return first_version_bytes(shape, topology, compute_bytes)


def published_adapter_bytes(config: Config, shape: ModelShape, compute_bytes: int) -> float:
    value_bytes = 2 if config.lora.publish_dtype == "bfloat16" else compute_bytes
    return float(value_bytes * num_adapter_parameters(config.lora, shape))


def first_version_bytes(shape: ModelShape, topology: Topology, compute_bytes: int) -> list[float]:
    """Bytes that each tensor-parallel worker of a generator receives when it has none of the weights yet.

    Everything with `broadcast`. Else its slices: its rows of the vocabulary, which vLLM pads to a multiple of 64; all
    parameters that are replicated; an even share of the rest. A KV head that several workers need goes to each of them.
    """
    parts = topology.tensor_parallel
    if topology.publish_engine == "broadcast":
        return [compute_bytes * float(shape.num_parameters)] * parts
    rows_of_part = -(-shape.vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE // parts
    num_vocabulary_matrices = shape.num_root_parameters // (shape.vocab_size * shape.hidden_size)
    row = num_vocabulary_matrices * shape.hidden_size
    kv_parameters = 2 * shape.num_layers * shape.hidden_size * shape.num_kv_heads * shape.head_dim
    num_copies = max(1.0, parts / shape.num_kv_heads)
    cut = shape.num_parameters - shape.num_replicated_parameters - shape.vocab_size * row
    share = shape.num_replicated_parameters + (cut + (num_copies - 1) * kv_parameters) / parts
    num_rows = [min(max(0, shape.vocab_size - part * rows_of_part), rows_of_part) for part in range(parts)]
    return [compute_bytes * (share + rows * row) for rows in num_rows]


def num_adapter_parameters(lora: LoraConfig, shape: ModelShape) -> int:
    """A: rank · (in + out) of each layer that has an adapter."""
    return (lora.rank or 0) * sum(layer.num_inputs + layer.num_outputs for layer in adapted_layers(lora, shape))


def adapted_layers(lora: LoraConfig, shape: ModelShape) -> list[LinearLayer]:
    return [layer for layer in shape.linear_layers if not lora.targets or layer.name in lora.targets]
