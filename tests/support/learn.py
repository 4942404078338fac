"""Tiny random models, random batches, and learner ranks in processes of their own."""

from __future__ import annotations

import math
import multiprocessing
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from transformers import Qwen3Config, Qwen3ForCausalLM

from asyncrl.config.load import load
from asyncrl.config.schema import Config
from asyncrl.learn.policy.model import PolicyModel
from asyncrl.learn.update.step import Learner
from asyncrl.types import NO_VERSION, Batch, Group

VOCABULARY = 48
PRELOAD = ["asyncrl.learn.checkpoint", "transformers.models.qwen3.modeling_qwen3"]
"""What the one fork server of this process imports."""


def save_tiny_model(path: Path, *, tied: bool, num_hidden_layers: int = 2) -> str:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        attention_dropout=0.1,  # the learner must turn it off
        initializer_range=0.2,
    )
    Qwen3ForCausalLM(config).save_pretrained(path)
    return str(path)


def random_group(rng: np.random.Generator, index: int, version: int, size: int = 4) -> Group:
    lengths = rng.integers(1, 9, size).astype(np.int32)
    total = int(lengths.sum())
    return Group(
        index=index,
        row=index,
        prompt_token_ids=rng.integers(0, VOCABULARY, int(rng.integers(1, 7))).astype(np.int32),
        lengths=lengths,
        tokens=rng.integers(0, VOCABULARY, total).astype(np.int32),
        logprobs=(-np.log(VOCABULARY) + rng.normal(0, 1.0, total)).astype(np.float32),
        versions=rng.integers(max(0, version - 2), version + 1, total).astype(np.int32),
        rewards=rng.integers(0, 3, size).astype(np.float32),
        correct=rng.random(size) < 0.5,
        truncated=rng.random(size) < 0.2,
    )


def with_turns(rng: np.random.Generator, group: Group) -> Group:
    """The same tokens, cut into turns: some of them are an environment's now."""
    spans = [random_spans(rng, int(length)) for length in group.lengths]
    sampled = replace(group, spans=spans).sampled
    return replace(
        group,
        spans=spans,
        logprobs=np.where(sampled, group.logprobs, np.float32(0)),
        versions=np.where(sampled, group.versions, np.int32(NO_VERSION)),
        environment_s=0.5,
    )


def random_spans(rng: np.random.Generator, length: int) -> list[int]:
    """An odd number of parts of `length`, each ≥ 1."""
    num_cuts = 2 * int(rng.integers(0, (length - 1) // 2 + 1))
    cuts = np.sort(rng.choice(np.arange(1, length), num_cuts, replace=False))
    return np.diff([0, *cuts.tolist(), length]).tolist()


def random_batch(seed: int, step: int = 0, num_groups: int = 4) -> Batch:
    rng = np.random.default_rng(seed)
    return Batch(step=step, groups=[random_group(rng, i, step) for i in range(num_groups)], next_step=step + 1)


def tiny_config(model_path: str, *overrides: str) -> Config:
    defaults = ["learner.batch_size=4", "learner.lr=0.001", "learner.micro_batch_tokens=64", "algorithm.group_size=4"]
    loss = ["algorithm.loss=ppo_clip", "algorithm.clip_upper=0.28", "algorithm.correction=token_truncate"]
    return load(None, [f"model.path={model_path}", "data.train=none", *defaults, *loss, *overrides])


def full_parameters(learner: Learner) -> dict[str, torch.Tensor]:
    return _whole(learner.policy)


def full_reference(learner: Learner) -> dict[str, torch.Tensor]:
    assert isinstance(learner.reference, PolicyModel)
    return _whole(learner.reference)


def _whole(model: PolicyModel) -> dict[str, torch.Tensor]:
    parameters = model.hf_parameters()
    return {name: value.full_tensor().detach().clone() for name, value in parameters}  # type: ignore[attr-defined]


def plain_ratio(logprobs: torch.Tensor, behaviour: torch.Tensor | float) -> torch.Tensor:
    """ρ; one above 20 counts as 20 with its gradient in proportion."""
    ratio = (logprobs - behaviour).exp()
    return torch.where(ratio <= 20, ratio, 20 * ratio / ratio.detach())


def plain_k3(log_ratio: torch.Tensor) -> torch.Tensor:
    """e^x − 1 − x, which is 10 at x = 2.611; beyond, along its tangent there."""
    at = 2.611
    tangent = math.exp(at) - 1 - at + (math.exp(at) - 1) * (log_ratio - at)
    return torch.where(log_ratio < at, log_ratio.exp() - 1 - log_ratio, tangent)


def run_ranks(num_ranks: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """function(mesh, *args) on every rank, each a process with gloo; the results by rank."""
    context = multiprocessing.get_context("forkserver")  # imports once, then forks: 6 s a rank saved
    context.set_forkserver_preload(PRELOAD)
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(num_ranks, mp_context=context) as pool:
        futures = [pool.submit(_rank, rank, num_ranks, folder, function, args) for rank in range(num_ranks)]
        return [future.result() for future in futures]


def _rank(rank: int, num_ranks: int, folder: str, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=num_ranks, timeout=timedelta(seconds=60))
    mesh: DeviceMesh = init_device_mesh("cpu", (num_ranks,))
    try:
        return function(mesh, *args)
    finally:
        dist.destroy_process_group()
