"""asyncrl's weight-transfer engine, the worker's side, behind vLLM's own interface.

What a worker receives, and when, is in `receiver.py`; how a vLLM model takes it over, in `slice_discovery.py` and
`staging.py`. The learner's side is `sender.py`.

Importing this module registers the engine with vLLM as `BACKEND`. vLLM's workers import it through
`worker_extension_cls` (see `WorkerExtension`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

from asyncrl.errors import PublishError
from asyncrl.publish.plan import Slice
from asyncrl.publish.receiver import JoinInfo, Receiver
from asyncrl.publish.vllm.slice_discovery import abandon_reload, find_slices
from asyncrl.publish.vllm.staging import Spare, Staging, has_experts

BACKEND = "asyncrl"


@dataclass
class InitInfo(JoinInfo, WeightTransferInitInfo):
    """As vLLM takes it."""


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):
    """How the weights of this update come."""

    staged: bool
    """They have come already; else they come now, while the model stands still."""


class AsyncrlWeightTransferEngine(Receiver, WeightTransferEngine[InitInfo, UpdateInfo]):
    """One worker of one generator."""

    init_info_cls = InitInfo
    update_info_cls = UpdateInfo

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        """Returns at once, see `Receiver.begin`."""
        if self.model_config.use_mla:
            raise PublishError("asyncrl cannot publish to a model with multi-head latent attention")
        if self.device.type != "cpu" and has_experts(self.model):
            raise PublishError("asyncrl cannot publish to a mixture of experts on a GPU, where vLLM reorders them")
        self._spare: Spare = {}
        slices = find_slices(self.model, init_info.weights())
        self.begin(init_info, slices, self.parallel_config.rank, self.parallel_config.world_size)

    def start_weight_update(self) -> None:
        """Nothing: the model stays whole until its layers take over the new weights."""

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: UpdateInfo) -> None:
        """Switches to the new weights, see `Receiver.take_over`."""
        self.take_over(update_info.staged)

    def finish_weight_update(self) -> None:
        """Nothing is left to do."""

    def shutdown(self) -> None:
        self.leave()

    def _new_assembly(self, slices: list[Slice], at_once: bool) -> Staging:
        spare = None if self._keeps_last else self._spare
        return Staging(self.model, slices, self._pieces, self._device, at_once, spare)


class WorkerExtension:
    """vLLM's `worker_extension_cls`: its workers import this module, and their class gets these methods."""

    weight_transfer_engine: WeightTransferEngine[Any, Any]
    _weight_update_active: bool

    def stage_weights(self) -> None:
        assert isinstance(self.weight_transfer_engine, AsyncrlWeightTransferEngine)
        self.weight_transfer_engine.stage()

    def switch_weights(self, update_info: dict[str, Any]) -> None:
        """vLLM's start, update and finish in one, as the first and the last do nothing here: each costs a round trip
        under the pause."""
        self.weight_transfer_engine.update_weights(update_info)

    def leave_publish_group(self) -> None:
        """Ready for another group, whatever became of the last update; a whole update has to follow a broken one."""
        self._weight_update_active = False
        self.weight_transfer_engine.shutdown()
        abandon_reload(self.weight_transfer_engine.model)


if BACKEND not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine(BACKEND, AsyncrlWeightTransferEngine)
