"""The section `generator`: sampling that the ratio can bear, and a model that fits its lengths and its shards."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asyncrl.config.checks.devices import Device
from asyncrl.config.engines import engine_names
from asyncrl.config.schema import SGLANG, VLLM, Config

if TYPE_CHECKING:  # it loads torch
    from asyncrl.config.model_shape import ModelShape


def sampling_problems(config: Config) -> list[str]:
    """Truncated sampling biases π_θ/μ: μ is renormalised over the kept tokens, the learner's π_θ over all of them."""
    fix = (
        "the learner's logprobs are over the whole vocabulary, so the ratio π_θ/μ would be biased for every token; set"
    )
    problems = []
    if config.generator.top_p != 1:
        problems.append(f"generator.top_p={config.generator.top_p}: {fix} generator.top_p=1")
    if config.generator.top_k > 0:
        problems.append(f"generator.top_k={config.generator.top_k}: {fix} generator.top_k=-1")
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
