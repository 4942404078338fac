"""Multi-head latent attention: vLLM computes with two tensors that it makes of `kv_b_proj` after loading.

They have to be made again when `kv_b_proj` has taken over new weights, which vLLM does in place, so that CUDA graphs
find them where they were. They are the same numbers in another order, so whether they are up to date shows exactly.
"""

from __future__ import annotations

import torch
from vllm.model_executor.layers.attention import MLAAttention

from asyncrl.errors import PublishError


def refuse(model: torch.nn.Module, device: torch.device) -> None:
    """Models that sample from something else than what is published, and those of which nothing would show that.

    On a CPU vLLM 0.32's kernel is off by up to 0.3 in a logprob from a transformers forward, with weights that vLLM has
    loaded itself, and by up to 0.2 from one sample to the next of the same request. Expiry: when it is exact. Elsewhere
    vLLM may pack or quantise these tensors (AITER), so that they cannot be compared.

    Raises:
        PublishError: this model is served in such a way.
    """
    for attention in attentions(model):
        if device.type == "cpu":
            raise PublishError(
                "vLLM computes multi-head latent attention inexactly on a CPU, by up to 0.3 in a logprob; "
                "train this model on GPUs"
            )
        if not {"W_UK_T", "W_UV"} <= attention._parameters.keys() or not attention.kv_b_proj.weight.numel():
            raise PublishError(
                f"asyncrl cannot publish to multi-head latent attention over {type(attention.impl).__name__}, which "
                "packs its weights; choose another attention backend of vLLM"
            )


def attentions(model: torch.nn.Module) -> list[MLAAttention]:
    return [module for module in model.modules() if isinstance(module, MLAAttention)]


def remake(attention: MLAAttention, dtype: torch.dtype) -> None:
    """The model must not run meanwhile."""
    attention.process_weights_after_loading(dtype)


def verify(attention: MLAAttention) -> None:
    """Compares with `kv_b_proj` as it is now, [heads · (keys + values), rank].

    Raises:
        PublishError: they differ.
    """
    weight = attention.kv_b_proj.weight.data
    by_head = weight.view(attention.num_heads, -1, weight.shape[1])
    keys, values = by_head.split([attention.qk_nope_head_dim, attention.v_head_dim], dim=1)
    if not (torch.equal(attention.W_UK_T, keys) and torch.equal(attention.W_UV, values.transpose(1, 2))):
        raise PublishError("a latent attention does not compute with the weights that came for its kv_b_proj")
