"""FSDP2: which modules are gathered together, in which precision, and what stays gathered between micro-batches.

FSDP2 by itself gathers the next layer while one computes, forwards and backwards. Its explicit prefetching is for
learners whose CPU is the slower side; without GPUs that cannot be measured, so it is not used.
"""

from __future__ import annotations

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from transformers import PreTrainedModel

from asyncrl.learn.policy.decoder_layers import decoder_layers


def shard(
    policy: torch.nn.Module,
    hf: PreTrainedModel,
    dtype: torch.dtype,
    mesh: DeviceMesh,
    *,
    offload: bool,
    keep_root_gathered: bool = False,
    keep_layers_gathered: bool = False,
) -> None:
    """Each decoder layer is one unit, the rest (embeddings, last norm, output head) the root's.

    Args:
        policy: sharded in place; on one rank too, so that there is one code path.
        hf: the transformers model in it.
        dtype: compute type.
        mesh: one dimension.
        offload: keep shards in CPU memory; meaningless on CPU.
        keep_root_gathered: leave the root's parameters gathered between forward and backward, which begins with them.
        keep_layers_gathered: the same for the layers'.
    """
    mixed = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    precision = MixedPrecisionPolicy() if dtype == torch.float32 else mixed
    offload_policy = CPUOffloadPolicy() if offload and mesh.device_type != "cpu" else OffloadPolicy()
    for layer in decoder_layers(hf):
        fully_shard(
            layer,
            mesh=mesh,
            mp_policy=precision,
            offload_policy=offload_policy,
            reshard_after_forward=not keep_layers_gathered,
        )
    fully_shard(
        policy,
        mesh=mesh,
        mp_policy=precision,
        offload_policy=offload_policy,
        reshard_after_forward=not keep_root_gathered,
    )


def keep_gathered(policy: FSDPModule, what: str, *, is_last: bool) -> None:
    """Before the forward and backward pass of a micro-batch: what it leaves whole on every rank.

    After the last one of an update gradients are reduced and everything is sharded again.

    Args:
        what: `learner.keep_gathered`.
        is_last: of the micro-batches of an update.
    """
    if what == "nothing":
        return
    policy.set_requires_gradient_sync(is_last)
    if what == "all":
        policy.set_reshard_after_backward(is_last)
