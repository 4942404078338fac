"""vLLM's own trainer engines on learner rank 0 (`nccl`): whole tensors, while generation stands still."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

from asyncrl.config.schema import PublishConfig
from asyncrl.publish.generator_commands import GeneratorCommands


class VllmSender(WeightSource):
    """vLLM's view of the tensors, and its `VLLMWeightSyncClient`: its three calls of an update are our one Switch.

    Raises:
        PublishError: a generator did not join.
    """

    def __init__(
        self, client: GeneratorCommands, host: str, config: PublishConfig, metas: Mapping[str, torch.Tensor]
    ) -> None:
        self._client = client
        self._recompute_kv = config.kv_cache == "recompute"
        self._metas = [ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in metas.items()]
        self._tensors: Mapping[str, torch.Tensor] = {}
        self._version = -1
        self._stall_s = 0.0
        init_info = NCCLTrainerInitInfo(
            rank=0,
            master_address=host,
            master_port=_free_port(host),
            world_size=1 + len(client.workers),
            packed_buffer_size_bytes=config.bucket_bytes,
        )
        self._engine = WeightTransferTrainerFactory.trainer_init(init_info, client=self, source=self)

    def send(self, version: int, tensors: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """As `GlooSender.send`; without checksums."""
        self._version, self._tensors = version, tensors
        self._engine.send_weights()
        num_bytes = len(self._client.workers) * sum(tensor.nbytes for tensor in tensors.values())
        return {"time/publish_stall_s": self._stall_s, "publish/bytes": float(num_bytes)}

    def shutdown(self) -> None:
        self._engine.shutdown()

    def metadata(self) -> list[ParamMeta]:
        return self._metas

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in self._tensors.items():
            yield name, tensor.cuda()

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._client.join(init_info)

    def start_weight_update(self) -> None:
        """Part of Switch."""

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self._stall_s = self._client.switch(self._version, update_info, self._recompute_kv)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Part of Switch."""


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
