"""What the publish tests share: sampling, another policy, and the policy's logprobs computed another way."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from transformers import PreTrainedModel

from asyncrl.config.lora import LoraConfig
from asyncrl.generate.engines.base import Sampling
from asyncrl.learn.policy.adapter import adapted_layers, adapter_tensors, add_adapter, base_parameters
from asyncrl.publish.gather import metas
from asyncrl.types import Completion

PROMPT = [5, 6, 7]
TOLERANCE = 1e-5


def sampling(num_samples: int, max_tokens: int, seed: int = 0, temperature: float = 1.0) -> Sampling:
    return Sampling(num_samples, temperature, top_p=1.0, top_k=-1, max_tokens=max_tokens, seed=seed)


def perturbed(model: PreTrainedModel, scale: float = 0.05) -> dict[str, torch.Tensor]:
    """The parameters of a model that has just been changed at random."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def another_adapter(
    model: PreTrainedModel, rank: int = 1, dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    """The parameters of a model and its adapter, which is added first where it has none, and changed at random.

    Args:
        dtype: in which the adapter travels.
    """
    if not adapted_layers(model):
        add_adapter(model, LoraConfig(rank=rank, alpha=2.0 * rank))
    with torch.no_grad():
        for layer in adapted_layers(model).values():
            for parameter in (*layer.lora_A.parameters(), *layer.lora_B.parameters()):
                parameter.copy_(0.1 * torch.randn_like(parameter))
    adapter = [(name, tensor.to(dtype)) for name, tensor in adapter_tensors(model)]
    return {name: tensor.detach().clone() for name, tensor in (*base_parameters(model), *adapter)}


def merged_by_hand(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights, float64, of a base and its adapter, by the names under which they are published."""
    weights = {name: tensor.double() for name, tensor in tensors.items() if "lora" not in name}
    for name, tensor in tensors.items():
        if "lora_A" in name:
            lora_b = tensors[name.replace("lora_A", "lora_B")]
            weights[name.replace("lora_A.", "")] += lora_b.double() @ tensor.double()
    return weights


def metas_of(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return metas(model.named_parameters(), torch.float32)


def largest_difference(model: PreTrainedModel, completions: list[Completion], temperature: float = 1.0) -> float:
    """Between the engine's logprobs and those of a plain transformers forward, over all tokens."""
    differences = []
    for completion in completions:
        ids = torch.tensor([[*PROMPT, *completion.token_ids.tolist()]])
        with torch.no_grad():
            logprobs = torch.log_softmax(model(ids).logits[0] / temperature, dim=-1)
        expected = logprobs[len(PROMPT) - 1 : -1].gather(1, ids[0, len(PROMPT) :, None])[:, 0].numpy()
        differences.append(np.abs(expected - completion.logprobs).max())
    return float(max(differences))


def assert_every_token_is_of_its_version(
    completions: list[Completion], policies: Mapping[int, PreTrainedModel]
) -> None:
    """Its logprob is that of the policy of the version it carries, over the whole prefix: the KV was recomputed."""
    for completion in completions:
        assert completion.finish_reason in ("stop", "length")
        assert (np.diff(completion.versions) >= 0).all()
        ids = torch.tensor([[*PROMPT, *completion.token_ids.tolist()]])
        for version in set(completion.versions.tolist()):
            with torch.no_grad():
                logprobs = torch.log_softmax(policies[version](ids).logits[0], dim=-1)
            expected = logprobs[len(PROMPT) - 1 : -1].gather(1, ids[0, len(PROMPT) :, None])[:, 0].numpy()
            mine = completion.versions == version
            assert np.abs(expected - completion.logprobs)[mine].max() < TOLERANCE
