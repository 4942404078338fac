"""asyncrl's receiver in a vLLM worker, which holds it as its weight-transfer engine.

What a worker receives, and when, is in `publish/receiver.py`; how a vLLM model takes it over, in `slice_discovery.py`
and `staging.py`. The learner's side is `publish/sender.py`.

Importing this module registers the engine with vLLM as `BACKEND`. vLLM's workers import it through
`worker_extension_cls` (see `WorkerExtension`).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

from asyncrl.publish.plan import Slice
from asyncrl.publish.receiver import JoinInfo, Receiver
from asyncrl.publish.vllm import latent_attention
from asyncrl.publish.vllm.slice_discovery import abandon_reload, find_slices
from asyncrl.publish.vllm.staging import Spare, Staging, reserve

log = logging.getLogger(__name__)

BACKEND = "asyncrl"
STAGE_ON_DEVICE = "asyncrl_stage_on_device"
"""Key of vLLM's `additional_config`: a second copy of the weights was left room for in GPU memory."""
NOT_IN_STEPS = "asyncrl's weights are switched at once, by WorkerExtension.switch_weights"


@dataclass
class InitInfo(JoinInfo, WeightTransferInitInfo):
    """As vLLM takes it."""


class VllmReceiver(Receiver, WeightTransferEngine[InitInfo, WeightTransferUpdateInfo]):
    """One worker of one generator."""

    init_info_cls = InitInfo
    update_info_cls = WeightTransferUpdateInfo

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        """Returns at once, see `Receiver.begin`."""
        latent_attention.refuse(self.model, self.device)
        slices = find_slices(self.model, self.model_config.hf_text_config.model_type, init_info.weights())
        self._spare, self._staged_in = self._reserve(slices, init_info.delta)
        self.begin(init_info, slices, self.parallel_config.rank, self.parallel_config.world_size)

    def start_weight_update(self) -> None:
        raise NotImplementedError(NOT_IN_STEPS)

    def receive_weights(self, update_info: WeightTransferUpdateInfo) -> None:
        raise NotImplementedError(NOT_IN_STEPS)

    def finish_weight_update(self) -> None:
        raise NotImplementedError(NOT_IN_STEPS)

    def shutdown(self) -> None:
        self.leave()

    def _reserve(self, slices: list[Slice], delta: bool) -> tuple[Spare, torch.device]:
        """Memory for the next version: where the model lies, if room was left there; else it comes from the host.

        Deltas need the version before as well, and have both in host memory.
        """
        additional = self.vllm_config.additional_config
        if delta or not (isinstance(additional, dict) and additional.get(STAGE_ON_DEVICE)):
            return {}, torch.device("cpu")
        self._spare = {}  # of an earlier group: the allocator gives it out again
        try:
            return reserve(self.model, slices, self.device), self.device
        except torch.OutOfMemoryError:
            log.warning("no room for the next version in the memory of %s after all; it goes to the host", self.device)
            return {}, torch.device("cpu")

    def _new_assembly(self, slices: list[Slice], at_once: bool) -> Staging:
        memory = self.device if at_once else self._staged_in
        return Staging(
            self.model,
            self.model_config.dtype,
            slices,
            self._pieces,
            transport_device=self._device,
            device=self.device,
            memory=memory,
            at_once=at_once,
            spare=None if self._keeps_last else self._spare,
        )


class WorkerExtension:
    """vLLM's `worker_extension_cls`: its workers import this module, and their class gets these methods."""

    weight_transfer_engine: VllmReceiver
    model_runner: Any

    def stage_weights(self) -> None:
        self.weight_transfer_engine.stage()

    def switch_weights(self, update_info: dict[str, Any]) -> None:
        """Instead of vLLM's start, update and finish, each of which costs a round trip under the pause."""
        self.weight_transfer_engine.take_over(update_info["staged"])

    def leave_publish_group(self) -> None:
        """Ready for another group, whatever became of the last update; a whole update has to follow a broken one."""
        self.weight_transfer_engine.shutdown()
        abandon_reload(self.weight_transfer_engine.model)

    def kernels(self) -> dict[str, str]:
        """See `Engine.kernels`."""
        runner = self.model_runner
        modules = self.weight_transfer_engine.model.modules()
        backends = {type(impl).__name__ for module in modules if (impl := getattr(module, "impl", None)) is not None}
        sampler = getattr(runner, "sampler", None)
        drawing = getattr(getattr(sampler, "topk_topp_sampler", None), "forward", sampler)
        return {
            "attention": ", ".join(sorted(backends)),
            "sampling": getattr(drawing, "__qualname__", type(drawing).__qualname__),
            "runner": f"{type(runner).__module__}.{type(runner).__name__}",
        }


if BACKEND not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine(BACKEND, VllmReceiver)
