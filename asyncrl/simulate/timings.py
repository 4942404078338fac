"""What a simulation takes as given: how long each part of a run takes, and what the prompts ask for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

NUM_DRAWN = 65_536
"""Lengths drawn at once."""


@dataclass(frozen=True)
class Timings:
    """Seconds on given hardware, for given numbers of tensor-parallel workers and learner ranks."""

    decode_base_s: float
    """a of t(n) = a + b·n, the time of one decode step of an engine with n running sequences."""
    decode_per_sequence_s: float
    """b."""
    prefill_per_token_s: float
    """A prompt is computed once for its group; decoding stands still meanwhile."""
    max_sequences: int
    """Sequences that one engine decodes at once: what its KV cache has room for. Others wait in line."""
    train_base_s: float
    """Of a step, whatever its tokens are."""
    train_per_token_s: float
    """Of all ranks together, for each token of a prompt or completion."""
    gather_s: float
    """The learner gathers a version before it hands it over."""
    transfer_s: float
    """A version's way to the generators."""
    stall_s: float
    """Generation stands still so long for each version."""
    intake_steps: float = 1.0
    """A lease waits for its first decode step up to so many steps: engines take prompts in between two of them, and a
    lease comes at any moment of one."""
    overlaps: bool = True
    """The transfer goes on beside training and decoding. False: the learner waits, and generation stands still."""
    reward_s: float = 0.0
    """From a group's last token to its score."""
    deliver_s: float = 0.0
    """A batch that is ready is on its way so long: it becomes durable, and travels."""
    save_s: float = 0.0
    """A checkpoint."""


@dataclass(frozen=True)
class Workload:
    """Lengths and rewards. Lengths are lognormal, rounded, at least 1 and cut at `max_tokens`."""

    prompt_tokens: int
    """Of each prompt."""
    length_median: float
    """Of completions, before they are cut."""
    length_sigma: float
    """Standard deviation of the logarithm; 0 = all have the median."""
    max_tokens: int
    no_signal_fraction: float = 0.0
    """Groups whose rewards are all equal."""
    log_ess_per_version: float = 0.0
    """−log of the effective sample size, ÷ (mean lag + 1): for the controller of η. 0 = all tokens count in full."""
    num_eval_prompts: int = 0

    def lengths(self, rng: np.random.Generator) -> Iterator[int]:
        """Tokens of one completion after another, without end."""
        while True:
            yield from self._draw(rng).tolist()

    def _draw(self, rng: np.random.Generator) -> NDArray[np.int64]:
        drawn = self.length_median * np.exp(self.length_sigma * rng.standard_normal(NUM_DRAWN))
        return np.clip(np.rint(drawn), 1, self.max_tokens).astype(np.int64)

    @cached_property
    def _sample(self) -> NDArray[np.int64]:
        return self._draw(np.random.default_rng(0))

    @property
    def length_mean(self) -> float:
        """Of completions, after the cut; of a large sample."""
        return float(self._sample.mean())

    @property
    def context_mean(self) -> float:
        """Tokens in the KV cache of a sequence that is seen at a random moment of its decoding.

        Long ones are seen for longer: prompt + E[L²] / (2·E[L]).
        """
        return self.prompt_tokens + float((self._sample**2).mean() / (2 * self._sample.mean()))
