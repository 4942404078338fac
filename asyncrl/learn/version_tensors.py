"""Which tensors a version is made of on their way to the generators."""

from __future__ import annotations

import torch

from asyncrl.learn.policy.model import PolicyModel
from asyncrl.publish.gather import gather, metas

Tensors = dict[str, torch.Tensor]


class VersionTensors:
    """All weights of every version, an adapter merged; for publish.engine=adapter the base weights and the adapter.

    Base weights do not change, so they are gathered once.

    Args:
        dtype: of the weights; an adapter is float32.
        bucket_bytes: as `gather` takes it.
    """

    def __init__(self, policy: PolicyModel, dtype: torch.dtype, adapter_alone: bool, bucket_bytes: int) -> None:
        self._policy = policy
        self._dtype = dtype
        self._adapter_alone = adapter_alone
        self._bucket_bytes = bucket_bytes
        self._base: Tensors | None = None

    def metas(self) -> Tensors:
        """What `gather` will bring, as meta tensors. Local."""
        weights = metas(self._policy.base_parameters(), self._dtype)
        adapter = metas(self._policy.adapter_tensors(), torch.float32) if self._adapter_alone else {}
        return weights | adapter

    def gather(self, keep: bool, memory: Tensors) -> Tensors:
        """Collective. On ranks that do not keep it: empty.

        Args:
            memory: of an earlier version, to be written over. Base weights are never among what is written.
        """
        if not self._adapter_alone:
            return gather(self._policy.hf_parameters(), self._dtype, keep, self._bucket_bytes, memory)
        if self._base is None:
            self._base = gather(self._policy.base_parameters(), self._dtype, keep, self._bucket_bytes)
        adapter = gather(self._policy.adapter_tensors(), torch.float32, keep, self._bucket_bytes, memory)
        return self._base | adapter
