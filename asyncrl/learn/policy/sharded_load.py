"""A model's weights, read so that no process ever holds more than its own shards of them.

    meta model ── every parameter a DTensor without data ──▶ transformers reads and converts this rank's rows alone
    Shards     ── after FSDP has cut the model ──▶ its parameters, as they are

transformers' own loader does the reading, so names, conversions and types are what `from_pretrained` gives.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, modeling_utils
from transformers.core_model_loading import Concatenate, MergeModulelist, WeightConverter
from transformers.distributed import DistributedConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shards:
    """What one rank holds of a model: its rows of each parameter, as FSDP2 will cut them, in host memory."""

    parameters: dict[str, Tensor]
    """Name → float32 rows; a tied parameter comes once, under the name that `named_parameters` gives it."""
    buffers: dict[str, Tensor]


def read_sharded(
    path: str, config: PretrainedConfig, mesh: DeviceMesh, options: dict[str, Any]
) -> tuple[PreTrainedModel, set[str], Shards]:
    """The model on the meta device, the parameters that its files lack, and this rank's shards. Collective.

    A model whose weights are converted in a way that cannot be done shard by shard is read whole by every rank, as a
    warning says.

    Args:
        path: folder or hub name.
        config: of the model.
        mesh: one dimension, of CPUs.
        options: for `from_pretrained`.

    Raises:
        OSError, ValueError, ImportError: as `from_pretrained`.
    """
    read = partial(
        AutoModelForCausalLM.from_pretrained,
        path,
        config=config,
        dtype=torch.float32,
        output_loading_info=True,
        **options,
    )
    problem = ""
    try:
        with _before_reading(partial(_lay_out, mesh=mesh)):
            hf, loading = read(distributed_config=DistributedConfig())
        problem = _uncut_conversion(hf)
    except RuntimeError as error:  # _lay_out's, or of a conversion
        problem = str(error).splitlines()[0]
    if _any_rank(bool(problem)):
        log.warning("%s: every rank reads the whole model once, since %s", path, problem or "another rank has to")
        hf, loading = read()
        _lay_on(hf, mesh)
    vars(hf.config).pop("distributed_config", None)
    return hf, set(loading["missing_keys"]), _take_out(hf)


def fill(hf: PreTrainedModel, shards: Shards, device: torch.device, *, offload: bool) -> None:
    """Gives a sharded model on the meta device its shards, without a second copy of them.

    Args:
        hf: has the parameters under the names of `shards`.
        shards: emptied.
        device: where the model computes.
        offload: leave the parameters, but not the buffers, in host memory.
    """
    filled: dict[nn.Parameter, nn.Parameter] = {}
    state = {}
    for name, parameter in hf.named_parameters(remove_duplicate=False):
        if parameter not in filled:
            shard = shards.parameters.pop(name)
            value = DTensor(shard if offload else shard.to(device), parameter._spec, requires_grad=False)
            filled[parameter] = nn.Parameter(value, requires_grad=parameter.requires_grad)
        state[name] = filled[parameter]
    hf.load_state_dict(state, strict=False, assign=True)  # FSDP takes what is assigned for its own
    for name, _ in list(hf.named_buffers()):
        owner, _, leaf = name.rpartition(".")
        hf.get_submodule(owner)._buffers[leaf] = shards.buffers.pop(name).to(device)


@contextmanager
def _before_reading(prepare: Callable[[PreTrainedModel], None]) -> Iterator[None]:
    """`from_pretrained` calls `prepare` with the model on the meta device, before it reads the files.

    It reads them with system calls meanwhile: mapped, a file would count as memory of each process that has read it.
    """

    def distribute(cls: type[PreTrainedModel], model: PreTrainedModel, *args: Any) -> PreTrainedModel:
        prepare(model)
        return model

    def unmapped(file: str, **options: Any) -> Any:
        return safe_open(file, **(options | {"backend": "pread"}))

    opened = modeling_utils.safe_open
    PreTrainedModel.maybe_distribute_model = classmethod(distribute)
    modeling_utils.safe_open = unmapped
    try:
        yield
    finally:
        del PreTrainedModel.maybe_distribute_model  # back to the one of its base class
        modeling_utils.safe_open = opened


def _lay_out(model: PreTrainedModel, mesh: DeviceMesh) -> None:
    """As `_lay_on`, before anything is read.

    Raises:
        RuntimeError: a rank would have no expert, which transformers' conversion cannot do.
    """
    for name, parameter in model.named_parameters():
        if (
            parameter.ndim == 3
            and Shard.local_shard_size_and_offset(len(parameter), mesh.size(), mesh.size() - 1)[0] == 0
        ):
            raise RuntimeError(
                f"{name} has too few experts ({len(parameter)}) for each of {mesh.size()} ranks to have one"
            )
    _lay_on(model, mesh)


def _lay_on(model: PreTrainedModel, mesh: DeviceMesh) -> None:
    """Each parameter becomes a DTensor with this rank's rows of it, on the meta device if it is there."""

    def lay(parameter: nn.Parameter) -> Tensor:
        rows, start = Shard.local_shard_size_and_offset(parameter.shape[0], mesh.size(), mesh.get_local_rank())
        local = parameter.detach()[start : start + rows].clone()
        shape, stride = parameter.shape, parameter.stride()
        return DTensor.from_local(local, mesh, (Shard(0),), run_check=False, shape=shape, stride=stride)

    _replace_parameters(model, lay)


def _take_out(model: PreTrainedModel) -> Shards:
    """The model's shards and buffers; its parameters are plain ones on the meta device from now on."""
    shards = Shards(
        {name: parameter.to_local().detach() for name, parameter in model.named_parameters()},
        {name: buffer.clone() for name, buffer in model.named_buffers()},
    )
    _replace_parameters(model, lambda parameter: torch.empty(parameter.shape, dtype=parameter.dtype, device="meta"))
    return shards


def _replace_parameters(model: nn.Module, replacement: Callable[[nn.Parameter], Tensor]) -> None:
    """In place; what was tied stays so."""
    replaced: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if parameter not in replaced:
                value = replacement(parameter)
                replaced[parameter] = nn.Parameter(value, requires_grad=parameter.requires_grad)
            module._parameters[name] = replaced[parameter]


def _uncut_conversion(model: PreTrainedModel) -> str:
    """Why what was read shard by shard may not be the whole's shards; empty if it is.

    Stacking experts and joining their rows leaves the first dimension, by which shards are cut, the experts'.
    """
    for conversion in getattr(model, "_weight_conversions", None) or []:
        for operation in conversion.operations if isinstance(conversion, WeightConverter) else []:
            stacks = isinstance(operation, MergeModulelist) and operation.dim == 0
            joins = isinstance(operation, Concatenate) and operation.dim == 1
            if not (stacks or joins):
                return f"{type(operation).__name__} of {conversion.target_patterns[0]} needs whole tensors"
    return ""


def _any_rank(value: bool) -> bool:
    """Collective."""
    shared = torch.tensor([value], dtype=torch.int64)
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    return bool(shared.item())
