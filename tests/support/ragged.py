"""Random ragged token data in float64, as packed tensors and as plain per-sequence lists for reference loops."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import strategies as st

from asyncrl.learn.update.mini_batches import ActionTokens


@dataclass(frozen=True)
class Sequence:
    """One completion as plain lists; the loops in the tests read these."""

    logprobs: list[float]
    behaviour: list[float]
    proximal: list[float]
    reference: list[float]
    entropy: list[float]
    lags: list[int]
    weights: list[float]
    advantage: float

    @property
    def trained(self) -> list[int]:
        return [t for t, weight in enumerate(self.weights) if weight > 0]


@dataclass(frozen=True)
class Ragged:
    sequences: list[Sequence]

    def packed(self, name: str) -> torch.Tensor:
        values = [value for sequence in self.sequences for value in getattr(sequence, name)]
        return torch.tensor(values, dtype=torch.int64 if name == "lags" else torch.float64)

    @property
    def segment_ids(self) -> torch.Tensor:
        return torch.tensor([i for i, sequence in enumerate(self.sequences) for _ in sequence.lags])

    @property
    def advantages(self) -> torch.Tensor:
        values = [sequence.advantage for sequence in self.sequences for _ in sequence.lags]
        return torch.tensor(values, dtype=torch.float64)

    def actions(self) -> ActionTokens:
        targets = torch.zeros_like(self.segment_ids)
        return ActionTokens(
            targets,
            self.packed("behaviour"),
            self.packed("lags"),
            torch.full_like(self.segment_ids, -1),
            self.segment_ids,
            self.advantages,
            self.packed("weights"),
            torch.zeros(len(targets), 0, dtype=torch.int32),
        )


def make(seed: int, lengths: list[int], spread: float = 0.5) -> Ragged:
    rng = np.random.default_rng(seed)

    def sequence(length: int) -> Sequence:
        logprobs = -rng.uniform(0.1, 3.0, length)
        return Sequence(
            logprobs=logprobs.tolist(),
            behaviour=np.minimum(logprobs + rng.normal(0, spread, length), -0.01).tolist(),
            proximal=np.minimum(logprobs + rng.normal(0, spread / 3, length), -0.01).tolist(),
            reference=np.minimum(logprobs + rng.normal(0, 1, length), -0.01).tolist(),
            entropy=rng.uniform(0, 3, length).tolist(),
            lags=rng.integers(0, 20, length).tolist(),
            weights=(rng.uniform(0.1, 1, length) * (rng.random(length) < 0.8)).tolist(),
            advantage=float(rng.choice([-1.7, -0.3, 0.0, 0.4, 2.0])),
        )

    return Ragged([sequence(length) for length in lengths])


ragged = st.builds(make, st.integers(0, 10**6), st.lists(st.integers(1, 6), min_size=1, max_size=5))
