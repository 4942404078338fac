"""Whether a generator's GPU has room for a second copy of its weights. Decided before vLLM takes the rest for KV."""

from __future__ import annotations

from dataclasses import dataclass

ENGINE_OVERHEAD_BYTES = 3 * 2**30
"""vLLM's profiled activations, CUDA graphs and context; 2 to 4 GiB for models of a few billion parameters."""

MAX_KV_SHARE = 0.25
"""A second copy may take this share of the KV cache, or all that the generator never fills."""


@dataclass(frozen=True)
class SecondCopy:
    """What a worker would need, in bytes."""

    weights_bytes: float
    kv_bytes_in_use: float
    """Of all completions that it is asked for at once, at their longest."""

    def fits(self, gpu_bytes: float, utilization: float, kv_cache_bytes: int | None) -> bool:
        """With a KV cache of a given size, or (None) one that gets what is left of `utilization`."""
        left = utilization * gpu_bytes - self.weights_bytes - ENGINE_OVERHEAD_BYTES
        if kv_cache_bytes is not None:
            return left - kv_cache_bytes >= self.weights_bytes
        return left - self.weights_bytes >= min(self.kv_bytes_in_use, (1 - MAX_KV_SHARE) * left)
