"""Prompts that a transformers model samples together, token by token, with exact logprobs.

The stand-in engine and the lag study sample with it.

Legend: N sequences, padded on the left to L tokens; each step appends one token to all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asyncrl.generate.engines.base import Sampling, completion_text
from asyncrl.types import Completion


@dataclass(frozen=True)
class Request:
    """One prompt, and how it is sampled: `sampling.num_samples` completions of it."""

    prompt_token_ids: list[int]
    sampling: Sampling


class SamplingBatch:
    """Samples until every sequence has ended by EOS or by its length.

    Args:
        model: a transformers causal language model; its weights may change between two steps.
    """

    def __init__(self, model: Any, requests: list[Request]) -> None:
        self._model = model
        self._eos = model.generation_config.eos_token_id
        self._requests = requests
        self._generators = [_generator(request.sampling.seed) for request in requests]
        sizes = [request.sampling.num_samples for request in requests]
        self._rows = torch.arange(sum(sizes)).split(sizes)
        prompts = [request.prompt_token_ids for request in requests for _ in range(request.sampling.num_samples)]
        self._num_prompt_tokens = length = max(map(len, prompts))
        self._ids = torch.tensor([[0] * (length - len(ids)) + ids for ids in prompts], dtype=torch.int64)
        self._mask = torch.tensor([[0] * (length - len(ids)) + [1] * len(ids) for ids in prompts])
        self._lengths = torch.zeros(len(prompts), dtype=torch.int64)
        """[N] tokens of each completion, EOS included."""
        self._alive = torch.ones(len(prompts), dtype=torch.bool)
        most = [request.sampling.max_tokens for request in requests for _ in range(request.sampling.num_samples)]
        self._most = torch.tensor(most, dtype=torch.int64)
        temperatures = [request.sampling.temperature or 1.0 for request in requests]
        self._temperatures = torch.tensor(temperatures).repeat_interleave(torch.tensor(sizes))
        self._logprobs: list[Tensor] = []
        """[N] of each step."""
        self._versions: list[int] = []
        """Of each step."""
        self._cache: Any = None
        self._given_up: set[int] = set()

    @property
    def done(self) -> bool:
        return not self._alive.any()

    def give_up(self, position: int) -> None:
        """This request gets no more tokens, and no completions."""
        self._given_up.add(position)
        self._alive[self._rows[position]] = False

    def forget_kv(self) -> None:
        """The next step computes it anew, with the weights of then."""
        self._cache = None

    @torch.no_grad()
    def step(self, version: int) -> None:
        """One token of each sequence, sampled with the model as it is: `version`."""
        positions = (self._mask.cumsum(1) - 1).clamp(min=0)
        fresh = slice(None) if self._cache is None else slice(-1, None)
        output = self._model(
            self._ids[:, fresh],
            attention_mask=self._mask,
            position_ids=positions[:, fresh],
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self._cache = output.past_key_values
        chosen, logprobs = self._choose(output.logits[:, -1].float())
        self._ids = torch.cat([self._ids, chosen[:, None]], 1)
        self._mask = torch.cat([self._mask, torch.ones_like(chosen)[:, None]], 1)
        self._logprobs.append(logprobs)
        self._versions.append(version)
        self._lengths += self._alive
        self._alive &= (chosen != self._eos) & (self._lengths < self._most)

    def _choose(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The next tokens and their logprobs, [N] each, after temperature. Each request has its own random numbers."""
        scores = (logits / self._temperatures[:, None]).log_softmax(-1)
        chosen, probabilities = scores.argmax(-1), scores.exp()
        for request, generator, rows in zip(self._requests, self._generators, self._rows, strict=True):
            if request.sampling.temperature:
                chosen[rows] = torch.multinomial(probabilities[rows], 1, generator=generator)[:, 0]
        return chosen, scores.gather(1, chosen[:, None])[:, 0]

    def completions(self, tokenizer: Any) -> list[list[Completion]]:
        """Of each request, in order; once all sequences have ended."""
        logprobs = torch.stack(self._logprobs, 1).numpy()
        versions = np.asarray(self._versions, np.int32)
        return [
            [self._completion(row, logprobs[row], versions, tokenizer) for row in rows.tolist()]
            if position not in self._given_up
            else []
            for position, rows in enumerate(self._rows)
        ]

    def _completion(self, row: int, logprobs: Any, versions: Any, tokenizer: Any) -> Completion:
        length = int(self._lengths[row])
        token_ids = self._ids[row, self._num_prompt_tokens :][:length].numpy()
        return Completion(
            token_ids=token_ids.astype(np.int32),
            logprobs=logprobs[:length],
            versions=versions[:length],
            text=completion_text(tokenizer, token_ids),
            finish_reason="stop" if token_ids[-1] == self._eos else "length",
        )


def _generator(seed: int | None) -> torch.Generator:
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator
