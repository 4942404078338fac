"""One training run that samples as far ahead as η allows, so that the lag of what it trains on is η, not less.

The learner is the project's own; a batched sampler in the same process stands in for vLLM, so that a step takes a
fraction of a second. It samples from a transformers model that holds the old weights, so behaviour logprobs are exact.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from asyncrl.config.schema import Config
from asyncrl.data.arithmetic import arithmetic_rows
from asyncrl.learn.update.batch_metrics import Metrics
from asyncrl.learn.update.step import Learner
from asyncrl.rewards.functions import numeric
from asyncrl.types import Batch, Group

EVAL_SAMPLES = 4
"""Completions of each held-out sum, at temperature 1: the expected reward of the policy, not of its mode."""


@dataclass(frozen=True)
class Sampled:
    """Completions of N prompts, padded on the right to L tokens."""

    tokens: Tensor
    """[N, L] int64"""
    logprobs: Tensor
    """[N, L] float32"""
    lengths: Tensor
    """[N] int64, EOS included."""


class Sampler:
    """Samples with the weights it was last given."""

    def __init__(self, model_path: str, max_tokens: int, seed: int) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(model_path, padding_side="left")
        self._model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32).eval()
        self._parameters = list(self._model.parameters())
        self._max_tokens = max_tokens
        self._generator = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def load(self, weights: list[Tensor]) -> None:
        for parameter, weight in zip(self._parameters, weights, strict=True):
            parameter.copy_(weight)

    @torch.no_grad()
    def sample(self, prompts: list[str]) -> Sampled:
        """One completion of each prompt, at temperature 1."""
        encoded = self.tokenizer(prompts, return_tensors="pt", padding=True)
        mask = encoded["attention_mask"]
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        ids, cache = encoded["input_ids"], None
        alive = torch.ones(len(prompts), dtype=torch.bool)
        lengths = torch.zeros(len(prompts), dtype=torch.int64)
        tokens, logprobs = [], []
        for _ in range(self._max_tokens):
            output = self._model(
                ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
            )
            cache = output.past_key_values
            scores = output.logits[:, -1].log_softmax(-1)
            ids = torch.multinomial(scores.exp(), 1, generator=self._generator)
            tokens.append(ids)
            logprobs.append(scores.gather(1, ids))
            lengths += alive
            alive &= ids[:, 0] != self.tokenizer.eos_token_id
            if not alive.any():
                break
            mask = torch.cat([mask, torch.ones_like(ids)], 1)
            positions = positions[:, -1:] + 1
        return Sampled(torch.cat(tokens, 1), torch.cat(logprobs, 1), lengths)


class LaggedRun:
    """The learner, the sampler and the queue between them, filled up to the admission limit before each step.

    So the first η + 1 batches come from version 0, and then each step trains on a batch of lag η.
    """

    def __init__(self, config: Config, mesh: DeviceMesh, num_steps: int) -> None:
        seed = config.run.seed
        self.eta = config.replay.max_staleness
        """May be moved between steps."""
        self.learner = Learner(config, mesh, num_steps)
        self._config = config
        self._sampler = Sampler(config.model.path, config.generator.max_tokens, seed)
        self._train, self._test = arithmetic_rows("train", seed), arithmetic_rows("test", seed)
        self._rng = np.random.default_rng(seed)
        self._queue: deque[Batch] = deque()
        self._version = 0

    def step(self) -> Metrics:
        """Samples what admission permits, trains on the oldest batch, and hands the new weights to the sampler."""
        while len(self._queue) <= self.eta:
            self._queue.append(self._sample_batch(self._version + len(self._queue)))
        metrics = self.learner.train(self._queue.popleft())
        shards = (parameter.detach() for _, parameter in self.learner.policy.hf_parameters())
        self._sampler.load([shard.full_tensor() for shard in shards if isinstance(shard, DTensor)])
        self._version += 1
        return metrics

    def evaluate(self) -> float:
        """Expected reward of the present policy on the held-out sums."""
        rows = self._test * EVAL_SAMPLES
        sampled = self._sampler.sample([prompt for prompt, _ in rows])
        return float(self._rewards(rows, sampled).mean())

    def _sample_batch(self, step: int) -> Batch:
        num_groups, size = self._config.learner.batch_size, self._config.algorithm.group_size
        chosen = self._rng.integers(len(self._train), size=num_groups).tolist()
        rows = [self._train[i] for i in chosen for _ in range(size)]
        sampled = self._sampler.sample([prompt for prompt, _ in rows])
        rewards = self._rewards(rows, sampled)
        groups = []
        for k, row in enumerate(chosen):
            part = slice(k * size, (k + 1) * size)
            lengths = sampled.lengths[part]
            kept = torch.arange(sampled.tokens.shape[1]) < lengths[:, None]
            groups.append(
                Group(
                    index=step * num_groups + k,
                    row=row,
                    prompt_token_ids=np.asarray(self._sampler.tokenizer(self._train[row][0])["input_ids"], np.int32),
                    lengths=lengths.numpy().astype(np.int32),
                    tokens=sampled.tokens[part][kept].numpy().astype(np.int32),
                    logprobs=sampled.logprobs[part][kept].numpy(),
                    versions=np.full(int(lengths.sum()), self._version, np.int32),
                    rewards=rewards[part].astype(np.float32),
                    correct=rewards[part] >= 1,
                    truncated=np.zeros(size, np.bool_),
                )
            )
        return Batch(step=step, groups=groups, next_step=step + 1)

    def _rewards(self, rows: list[tuple[str, str]], sampled: Sampled) -> Any:
        texts = [
            self._sampler.tokenizer.decode(ids[:n], skip_special_tokens=True)
            for ids, n in zip(sampled.tokens.tolist(), sampled.lengths.tolist(), strict=True)
        ]
        return np.array([numeric(text, answer) for (_, answer), text in zip(rows, texts, strict=True)])
