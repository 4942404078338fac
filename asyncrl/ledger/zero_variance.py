"""Which groups teach anything: those whose completions were rewarded differently."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def rewards_differ(rewards: ArrayLike) -> bool:
    """Two of a group's valid rewards ([G], NaN = quarantined) differ; compared exactly, as scored.

    A penalty that the learner adds (overlong, KL) is not in them: two correct completions of different lengths are no
    signal, as in DAPO's dynamic sampling (arXiv 2503.14476, section 3.2), which looks at the accuracy.
    """
    values = np.asarray(rewards)
    valid = values[~np.isnan(values)]
    return len(valid) > 0 and bool((valid != valid[0]).any())
