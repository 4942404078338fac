"""What transformers' parameters are called in a checkpoint, where vLLM's loaders look for them.

From version 5 on, transformers holds all experts of a layer in one tensor, which a checkpoint has expert by expert.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.core_model_loading import Concatenate, MergeModulelist, WeightConverter, WeightRenaming


def as_in_checkpoint(tensors: Mapping[str, torch.Tensor], model_type: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor under its name in a checkpoint; of one that holds experts, a view of each expert's part.

    Args:
        tensors: by their names in transformers; meta tensors will do.
        model_type: as in config.json.
    """
    changes = get_checkpoint_conversion_mapping(model_type) or []
    merges = [change for change in changes if isinstance(change, WeightConverter) and _merges_experts(change)]
    renamings = [change for change in changes if type(change) is WeightRenaming]
    for name, tensor in tensors.items():
        for own_name, part in _experts(name, tensor, merges):
            yield _renamed(own_name, renamings), part


def _merges_experts(change: WeightConverter) -> bool:
    kinds = [type(operation) for operation in change.operations]
    return kinds in ([MergeModulelist], [MergeModulelist, Concatenate]) and len(change.target_patterns) == 1


def _experts(name: str, tensor: torch.Tensor, merges: list[WeightConverter]) -> Iterator[tuple[str, torch.Tensor]]:
    for merge in merges:
        whole = merge.target_patterns[0]
        if not name.endswith(whole):
            continue
        parts = tensor.chunk(len(merge.source_patterns), dim=1)
        for pattern, part in zip(merge.source_patterns, parts, strict=True):
            for expert, weight in enumerate(part.unbind(0)):
                yield name.removesuffix(whole) + pattern.replace("*", str(expert)), weight
        return
    yield name, tensor


def _renamed(name: str, renamings: list[WeightRenaming]) -> str:
    for renaming in renamings:
        for ours, theirs in zip(renaming.target_patterns, renaming.source_patterns, strict=True):
            name = name.replace(ours, theirs)
    return name
