"""The section `generator`: sampling that the ratio can bear, and a model that fits its lengths and its shards."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asyncrl.config.checks.devices import Device
from asyncrl.config.engines import engine_names
from asyncrl.config.schema import SGLANG, VLLM, Config

if TYPE_CHECKING:  # it loads torch
    from asyncrl.config.model_shape import ModelShape


def sampling_problems(config: Config) -> list[str]:
    """Under top-k and top-p μ is normalised over the tokens that are left, which the engine has to tell."""
    top_p, top_k = config.generator.top_p, config.generator.top_k
    problems = []
    if not 0 < top_p <= 1:
        problems.append(f"generator.top_p={top_p} must be in (0, 1]")
    if top_k < -1:
        problems.append(f"generator.top_k={top_k} must be 1 or above, or -1 for the whole vocabulary")
    if top_p != 1 and top_k < 1:
        problems.append(
            f"generator.top_p={top_p} alone may leave the whole vocabulary, and the tokens that it leaves travel with "
            "each token to the learner; set generator.top_k=100 or another bound beside it"
        )
    if (top_p != 1 or top_k > 0) and SGLANG in engine_names(config.generator):
        problems.append(
            f"generator.engine={SGLANG} with generator.top_p={top_p}, generator.top_k={top_k}: SGLang does not tell "
            "which tokens were left; set generator.engine=vllm, or generator.top_p=1 generator.top_k=-1"
        )
    return problems


def model_problems(config: Config, device: Device, shape: ModelShape) -> list[str]:
    problems = []
    if device == "cpu" and shape.has_latent_attention and {VLLM, SGLANG} & set(engine_names(config.generator)):
        problems.append(
            f"model.path={config.model.path}: the model has multi-head latent attention, whose logprobs vLLM 0.32 gets "
            "wrong on a CPU, by up to 0.3, and SGLang does not take; train it on GPUs"
        )
    prompt, completion = config.data.max_prompt_tokens, config.generator.max_tokens
    if prompt + completion > shape.max_positions:
        problems.append(
            f"data.max_prompt_tokens={prompt} + generator.max_tokens={completion} = {prompt + completion} tokens, but "
            f"the model takes {shape.max_positions} (max_position_embeddings); lower one of the two"
        )
    context_size = config.learner.context_parallel
    if context_size > 1 and shape.num_kv_heads % context_size:
        problems.append(
            f"learner.context_parallel={context_size} does not divide the model's {shape.num_kv_heads} KV heads, which "
            "its ranks share out"
        )
    # The rules of vLLM's parallel linear layers: heads are cut evenly, KV heads cut or, when too few, copied evenly.
    parts = config.generator.tensor_parallel
    key = f"generator.tensor_parallel={parts}"
    if parts < 1:
        return problems
    if shape.num_heads % parts:
        problems.append(f"{key} does not divide the model's {shape.num_heads} attention heads")
    if shape.num_kv_heads % parts and parts % shape.num_kv_heads:
        problems.append(f"{key} neither divides nor is a multiple of the model's {shape.num_kv_heads} KV heads")
    if shape.intermediate_size % parts:
        problems.append(f"{key} does not divide the model's intermediate size {shape.intermediate_size}")
    return problems
