"""How far an engine's logprobs are from the learner's, and how far is too far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from asyncrl.errors import SelftestError
from asyncrl.selftest.result import Figures
from asyncrl.selftest.system import Sampled, System


class Tolerance(NamedTuple):
    """Of |log μ − log π| over tokens, in nats."""

    mean: float
    largest: float

    def holds(self, differences: NDArray[np.float32]) -> bool:
        """Not where one is NaN."""
        return bool(differences.mean() <= self.mean and differences.max() <= self.largest)


FLOAT32 = Tolerance(mean=1e-4, largest=1e-2)
"""Two implementations of one model differ by about 2e-7."""
BFLOAT16, BFLOAT16_OF_A_LAYER = Tolerance(mean=0.02, largest=1.0), Tolerance(mean=0.005, largest=0.1)
"""Each layer rounds anew. Measured: 2e-3 with two layers, 0.04 to 0.11 with the 30 of SmolLM2-135M."""

SENSITIVITY = 5.0
"""Another version has to be this many tolerances away, or agreement would say nothing."""


def tolerance_of(system: System, temperature: float) -> Tolerance:
    """By the compute type and the number of layers. A temperature below 1 makes differences larger."""
    if system.config.model.dtype == "float32":
        return FLOAT32
    scale = 1 / min(1.0, temperature)
    return Tolerance(
        *(scale * (base + system.num_layers * more) for base, more in zip(BFLOAT16, BFLOAT16_OF_A_LAYER, strict=True))
    )


def require_agreement(
    system: System, sampled: Sequence[Sampled], version: int, temperature: float, where: str, *, apart: bool = True
) -> Figures:
    """The engine's logprobs are those of `version`, and not as well those of the version before.

    Args:
        where: of the message, such as a generator's name.
        apart: the version before has to be out of tolerance; not so after a training step, which may change little.

    Raises:
        SelftestError: they are not, or nothing can be told.
    """
    engine = np.concatenate([one.logprobs for item in sampled for one in item.completions])
    mine = differences(system, sampled, version, temperature, engine)
    tolerance = tolerance_of(system, temperature)
    figures: Figures = {
        "tokens": len(engine),
        "mean": float(mine.mean()),
        "largest": float(mine.max()),
    }
    if not tolerance.holds(mine):
        suspect = _suspect(system, sampled, version, temperature, engine)
        raise SelftestError(
            f"{where}: log-probabilities of {len(engine)} tokens differ from the learner's version {version} by "
            f"{mine.mean():.2g} in the mean and {mine.max():.2g} at most (tolerated: {tolerance.mean:g}, "
            f"{tolerance.largest:g}; temperature {temperature:g}){suspect}"
        )
    if version > 0 and apart:
        other = differences(system, sampled, version - 1, temperature, engine).mean()
        figures["to_the_version_before"] = float(other)
        if not other >= SENSITIVITY * tolerance.mean:
            raise SelftestError(
                f"{where}: versions {version - 1} and {version} differ by {other:.2g}, too little to tell them apart"
            )
    return figures


def differences(
    system: System, sampled: Sequence[Sampled], version: int, temperature: float, engine: NDArray[np.float32]
) -> NDArray[np.float32]:
    """[T] |log μ − log π| against the policy of `version`."""
    scores = system.score(sampled, version, temperature)
    return np.abs(engine - np.concatenate([one.logprobs for one in scores]))


def _suspect(
    system: System, sampled: Sequence[Sampled], version: int, temperature: float, engine: NDArray[np.float32]
) -> str:
    """What they agree with instead, if that is a usual suspect."""
    tolerance = tolerance_of(system, temperature).mean
    if version > 0 and differences(system, sampled, version - 1, temperature, engine).mean() <= tolerance:
        return f"; they are those of version {version - 1}"
    if temperature != 1 and differences(system, sampled, version, 1.0, engine).mean() <= tolerance:
        return "; they are those of temperature 1"
    return ""
