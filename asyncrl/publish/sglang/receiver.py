"""asyncrl's receiver in SGLang's scheduler process, which holds the model of one tensor-parallel rank.

Which slices a rank keeps is found as in vLLM: its `load_weights` runs on tensors without data, and a recorder sees
every copy. SGLang serves unquantised weights as it has loaded them, so the recorder looks at the parameters that serve;
nothing is written to them but zeros where a padded vocabulary has zeros already. Whatever makes something else of
loaded weights is refused, because a publish would not change it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from asyncrl.errors import PublishError
from asyncrl.publish.checkpoint_names import as_in_checkpoint
from asyncrl.publish.next_parameters import NextParameters, Spare
from asyncrl.publish.plan import Slice, joined
from asyncrl.publish.receiver import JoinInfo, Receiver
from asyncrl.publish.slice_recorder import SliceRecorder

SERVED_AS_LOADED = ("UnquantizedLinearMethod", "UnquantizedEmbeddingMethod")
"""SGLang's methods whose layers multiply with their parameters as they are."""
ON_CPU_TOO = "UnquantizedFusedMoEMethod"
"""Some of its GPU kernels for experts want them in another order."""


class SglangReceiver(Receiver):
    """One rank of one generator.

    Args:
        model: the one that serves.
        model_type: as in its config.json.
    """

    def __init__(self, model: torch.nn.Module, model_type: str) -> None:
        self._parameters = dict(model.named_parameters())
        self._model = model
        self._model_type = model_type
        self._spare = Spare()

    def join(self, info: JoinInfo, part: int, num_parts: int) -> None:
        """Joins a group; leaves the one it is in. Returns at once, see `Receiver.begin`.

        Raises:
            PublishError: this model cannot be published to.
        """
        self.leave()
        refuse(self._model)
        self.begin(info, find_slices(self._model, self._model_type, info.weights()), part, num_parts)

    def _new_assembly(self, slices: list[Slice], at_once: bool) -> NextParameters:
        spare = None if self._keeps_last else self._spare  # the next delta is made of what came last
        return NextParameters(self._parameters, slices, self._pieces, self._device, at_once, spare)


def find_slices(model: torch.nn.Module, model_type: str, tensors: Mapping[str, torch.Tensor]) -> list[Slice]:
    """What this rank keeps of each checkpoint tensor.

    Args:
        model_type: as in its config.json.
        tensors: name in transformers → meta tensor.

    Raises:
        PublishError: a loader does not just copy, a tensor goes nowhere, or a parameter gets nothing.
    """
    parameters = dict(model.named_parameters())
    recorder = SliceRecorder(tensors, parameters)
    with recorder:
        model.load_weights(as_in_checkpoint(tensors, model_type))  # type: ignore[operator]
    taken, filled = ({pair[side] for pair in recorder.pairs} for side in (0, 1))
    if unused := tensors.keys() - taken:
        raise PublishError(f"SGLang's model has no place for {', '.join(sorted(unused)[:4])}")
    if left := parameters.keys() - filled:
        raise PublishError(f"nothing that is published goes to {', '.join(sorted(left)[:4])} of SGLang's model")
    return joined(recorder.slices)


def refuse(model: torch.nn.Module) -> None:
    """Models that serve with something else than what was loaded.

    Raises:
        PublishError: names the layer.
    """
    if hasattr(model, "post_load_weights"):
        raise PublishError(
            f"SGLang's {type(model).__name__} computes other weights from loaded ones (post_load_weights), which a "
            "publish would not change; use generator.engine=vllm"
        )
    on_cpu = next(model.parameters()).device.type == "cpu"
    served_as_loaded = ("NoneType", *SERVED_AS_LOADED, *([ON_CPU_TOO] if on_cpu else []))
    for name, layer in model.named_modules():
        method = type(getattr(layer, "quant_method", None)).__name__
        packed = getattr(layer, "use_intel_amx_backend", False)
        if packed or method not in served_as_loaded:
            how = "packs its weights for AMX" if packed else f"serves by {method}"
            raise PublishError(
                f"{name} of SGLang's model {how}, so it cannot be published to; use generator.engine=vllm"
            )
