"""The order in which prompts are drawn: a pure function of the admission index, so a resume needs that index alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from asyncrl.config.data import MixtureSet
from asyncrl.types import Prompt


class PromptOrder:
    """Admission index 0, 1, 2, … → position in the prompts; each epoch visits every prompt exactly once.

    With `shuffle`, epoch e is the permutation drawn from (seed, stream, e); without, the order of the file.
    """

    def __init__(self, num_prompts: int, shuffle: bool, seed: int, stream: tuple[int, ...] = ()) -> None:
        assert num_prompts > 0
        assert seed >= 0
        self._num_prompts = num_prompts
        self._shuffle = shuffle
        self._seeds = [seed, *stream]
        # Two: indices in flight may lie on both sides of an epoch's end.
        self._permutation = lru_cache(maxsize=2)(self._draw_permutation)

    def position(self, index: int) -> int:
        """Position of the prompt that admission index `index` draws."""
        epoch, offset = divmod(index, self._num_prompts)
        return int(self._permutation(epoch)[offset]) if self._shuffle else offset

    def _draw_permutation(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([*self._seeds, epoch]).permutation(self._num_prompts)


class MixtureOrder:
    """Admission index → position in the prompts of several data sets, which stand one after the other.

    Each data set goes through epochs of its own, in a `PromptOrder` of its own. Which one an index draws from follows
    from its weight alone: the first takes its share w of the indices as evenly as it goes, index i where
    ⌊(i + 1)·w⌋ > ⌊i·w⌋; the others share what is left in the same way. So of any n consecutive prompts a data set
    has n·w, up to one for each data set before it and one for itself.

    Args:
        sizes: prompts of each data set, each ≥ 1.
        weights: above 0, one a data set; the shares are their ratios.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], shuffle: bool, seed: int) -> None:
        self._starts = list(accumulate(sizes, initial=0))
        self._orders = [PromptOrder(size, shuffle, seed, (number,)) for number, size in enumerate(sizes)]
        exact = [Fraction(str(weight)) for weight in weights]
        self._shares = [weight / sum(exact[number:]) for number, weight in enumerate(exact)]
        """Of what the data sets before it have left; that of the last is 1."""

    def position(self, index: int) -> int:
        """Position of the prompt that admission index `index` draws."""
        for number, share in enumerate(self._shares):
            drawn_before = math.floor(index * share)
            if math.floor((index + 1) * share) > drawn_before:
                return self._starts[number] + self._orders[number].position(drawn_before)
            index -= drawn_before
        raise AssertionError("the last data set takes what is left")


def prompt_order(
    prompts: Sequence[Prompt], mixture: Sequence[MixtureSet], shuffle: bool, seed: int
) -> PromptOrder | MixtureOrder:
    """The order of a run's prompts, which stand data set by data set where they are of a mixture."""
    if not prompts[0].data_set:
        return PromptOrder(len(prompts), shuffle, seed)
    sizes: dict[str, int] = {}
    for prompt in prompts:
        sizes[prompt.data_set] = sizes.get(prompt.data_set, 0) + 1
    weights: Mapping[str, float] = {each.name: each.weight for each in mixture}
    return MixtureOrder(list(sizes.values()), [weights[name] for name in sizes], shuffle, seed)
