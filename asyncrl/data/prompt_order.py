"""The order in which prompts are drawn: a pure function of the admission index, so a resume needs that index alone."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


class PromptOrder:
    """Admission index 0, 1, 2, … → position in the prompts; each epoch visits every prompt exactly once.

    With `shuffle`, epoch e is the permutation drawn from (seed, e); without, the order of the file.
    """

    def __init__(self, num_prompts: int, shuffle: bool, seed: int) -> None:
        assert num_prompts > 0
        assert seed >= 0
        self._num_prompts = num_prompts
        self._shuffle = shuffle
        self._seed = seed
        # Two: indices in flight may lie on both sides of an epoch's end.
        self._permutation = lru_cache(maxsize=2)(self._draw_permutation)

    def position(self, index: int) -> int:
        """Position of the prompt that admission index `index` draws."""
        epoch, offset = divmod(index, self._num_prompts)
        return int(self._permutation(epoch)[offset]) if self._shuffle else offset

    def _draw_permutation(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([self._seed, epoch]).permutation(self._num_prompts)
