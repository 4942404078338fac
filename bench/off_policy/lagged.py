"""One training run that samples as far ahead as η allows, so that the lag of what it trains on is η, not less.

The learner is the project's own; a batched sampler in the same process stands in for vLLM, so that a step takes a
fraction of a second. It samples from a transformers model that holds the old weights, so behaviour logprobs are exact.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from asyncrl.config.schema import Config
from asyncrl.data.arithmetic import arithmetic_rows
from asyncrl.generate.engines.base import Sampling
from asyncrl.learn.update.batch_metrics import Metrics
from asyncrl.learn.update.step import Learner
from asyncrl.rewards.functions import numeric
from asyncrl.types import Batch, Completion, Group
from bench.support.sampler import Request, SamplingBatch

EVAL_SAMPLES = 4
"""Completions of each held-out sum, at temperature 1: the expected reward of the policy, not of its mode."""


class Sampler:
    """Samples at temperature 1 with the weights it was last given."""

    def __init__(self, model_path: str, max_tokens: int, rng: np.random.Generator) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(model_path)
        self._model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32).eval()
        self._parameters = list(self._model.parameters())
        self._max_tokens = max_tokens
        self._rng = rng

    @torch.no_grad()
    def load(self, weights: list[Tensor]) -> None:
        for parameter, weight in zip(self._parameters, weights, strict=True):
            parameter.copy_(weight)

    def sample(self, prompts: list[str], num_samples: int, version: int) -> list[list[Completion]]:
        """`num_samples` completions of each prompt; the weights are those of `version`."""
        requests = []
        for prompt, seed in zip(prompts, self._rng.integers(2**62, size=len(prompts)).tolist(), strict=True):
            sampling = Sampling(num_samples, 1.0, top_p=1.0, top_k=-1, max_tokens=self._max_tokens, seed=seed)
            requests.append(Request(self.tokenizer(prompt)["input_ids"], sampling))
        batch = SamplingBatch(self._model, requests)
        while not batch.done:
            batch.step(version)
        return batch.completions(self.tokenizer)


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
        self._train, self._test = arithmetic_rows("train", seed), arithmetic_rows("test", seed)
        self._rng = np.random.default_rng(seed)
        self._sampler = Sampler(config.model.path, config.generator.max_tokens, self._rng)
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
        groups = self._sampler.sample([prompt for prompt, _ in self._test], EVAL_SAMPLES, self._version)
        return float(np.mean([_rewards(row, group) for row, group in zip(self._test, groups, strict=True)]))

    def _sample_batch(self, step: int) -> Batch:
        num_groups, size = self._config.learner.batch_size, self._config.algorithm.group_size
        chosen = self._rng.integers(len(self._train), size=num_groups).tolist()
        sampled = self._sampler.sample([self._train[row][0] for row in chosen], size, self._version)
        groups = [
            self._group(step * num_groups + position, row, completions)
            for position, (row, completions) in enumerate(zip(chosen, sampled, strict=True))
        ]
        return Batch(step=step, groups=groups, next_step=step + 1)

    def _group(self, index: int, row: int, completions: list[Completion]) -> Group:
        rewards = _rewards(self._train[row], completions)
        return Group(
            index=index,
            row=row,
            prompt_token_ids=np.asarray(self._sampler.tokenizer(self._train[row][0])["input_ids"], np.int32),
            lengths=np.asarray([len(completion.token_ids) for completion in completions], np.int32),
            tokens=np.concatenate([completion.token_ids for completion in completions]),
            logprobs=np.concatenate([completion.logprobs for completion in completions]),
            versions=np.concatenate([completion.versions for completion in completions]),
            rewards=rewards.astype(np.float32),
            correct=rewards >= 1,
            truncated=np.zeros(len(completions), np.bool_),
        )


def _rewards(row: tuple[str, str], completions: list[Completion]) -> NDArray[np.float64]:
    _, answer = row
    return np.array([numeric(completion.text, answer) for completion in completions], np.float64)
