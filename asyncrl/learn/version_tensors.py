"""Which tensors a version is made of on their way to the generators."""

from __future__ import annotations

import torch

from asyncrl.config.schema import Config
from asyncrl.learn.policy.model import PolicyModel
from asyncrl.publish.gather import gather, metas

Tensors = dict[str, torch.Tensor]


def published_adapter_dtype(config: Config, dtype: torch.dtype) -> torch.dtype | None:
    """Of an adapter that travels alone; None = merged weights travel.

    Args:
        config: with publish.engine resolved.
        dtype: the compute type.
    """
    if config.publish.engine != "adapter":
        return None
    return torch.bfloat16 if config.lora.publish_dtype == "bfloat16" else dtype


class VersionTensors:
    """All weights of every version, an adapter merged; for publish.engine=adapter the base weights and the adapter.

    Base weights do not change, so they are gathered once.

    Args:
        dtype: of the weights.
        adapter_dtype: of the adapter, where it travels alone; None = merged weights travel.
        bucket_bytes: as `gather` takes it.
    """

    def __init__(
        self, policy: PolicyModel, dtype: torch.dtype, adapter_dtype: torch.dtype | None, bucket_bytes: int
    ) -> None:
        self._policy = policy
        self._dtype = dtype
        self._adapter_dtype = adapter_dtype
        self._bucket_bytes = bucket_bytes
        self._base: Tensors | None = None

    def metas(self) -> Tensors:
        """What `gather` will bring, as meta tensors. Local."""
        weights = metas(self._policy.base_parameters(), self._dtype)
        if self._adapter_dtype is None:
            return weights
        return weights | metas(self._policy.adapter_tensors(), self._adapter_dtype)

    def gather(self, keep: bool, memory: Tensors) -> Tensors:
        """Collective. On ranks that do not keep it: empty.

        Args:
            memory: of an earlier version, to be written over. Base weights are never among what is written.
        """
        if self._adapter_dtype is None:
            return gather(self._policy.hf_parameters(), self._dtype, keep, self._bucket_bytes, memory)
        if self._base is None:
            self._base = gather(self._policy.base_parameters(), self._dtype, keep, self._bucket_bytes)
        adapter = gather(self._policy.adapter_tensors(), self._adapter_dtype, keep, self._bucket_bytes, memory)
        return self._base | adapter
