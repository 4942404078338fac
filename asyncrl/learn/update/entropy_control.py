"""The coefficient of the entropy bonus as a controller of the policy's entropy (Skywork-OR1, arXiv 2505.22312).

After each step whose mean entropy e is at most the target the coefficient rises by a fixed amount, else it falls. It
acts in a step only if e of the step before was at most the target. TRL does the same at each update.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from asyncrl.config.algorithm import AlgorithmConfig


@dataclass(frozen=True)
class EntropyControl:
    """Its state, which checkpoints hold."""

    coef: float
    acts: bool
    """The entropy of the step before was at most the target; without a target always."""

    @staticmethod
    def start(algorithm: AlgorithmConfig) -> EntropyControl:
        return EntropyControl(algorithm.entropy_coef, acts=algorithm.entropy_target is None)

    def apply(self, algorithm: AlgorithmConfig) -> AlgorithmConfig:
        """The algorithm with the coefficient of this step."""
        return replace(algorithm, entropy_coef=self.coef if self.acts else 0.0)

    def after(self, entropy: float, algorithm: AlgorithmConfig) -> EntropyControl:
        """The state after a step of this mean entropy, in nats."""
        assert algorithm.entropy_target is not None
        is_low = entropy <= algorithm.entropy_target
        coef = self.coef + (algorithm.entropy_coef_step if is_low else -algorithm.entropy_coef_step)
        return EntropyControl(min(max(coef, 0.0), algorithm.entropy_coef_max), is_low)
