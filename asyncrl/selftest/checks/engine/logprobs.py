"""After a publish the engine's logprobs are the learner's, at every temperature and in every generator; under top-k and
top-p, where the run has them, over the tokens that the engine says are left."""

from __future__ import annotations

import numpy as np

from asyncrl.generate.engines.base import Sampling
from asyncrl.selftest.agreement import require_agreement
from asyncrl.selftest.result import Check, Figures
from asyncrl.selftest.system import Sampled, System

OTHER_TEMPERATURE = 0.5


def run(system: System) -> Figures:
    figures: Figures = {}
    system.publish()
    for sampling in samplings(system):
        for generator in system.generators:
            prompts = [system.prompt(seed, num_tokens) for seed, num_tokens in enumerate((3, 40, None))]
            sampled = system.sample(generator, prompts, sampling)
            found = require_agreement(system, sampled, system.version, sampling.temperature, generator.name)
            kind = f"T={sampling.temperature:g}"
            if sampling.truncates:
                kind += f" top_k={sampling.top_k} top_p={sampling.top_p:g}"
                found["tokens_left"] = _mean_support(sampled)
            figures |= {f"{generator.name} {kind} {name}": value for name, value in found.items()}
    return figures


def samplings(system: System) -> list[Sampling]:
    """Of the whole vocabulary at each temperature, and the run's own where it leaves tokens out."""
    config = system.config.generator
    own = system.sampling(4, temperature=config.temperature, top_k=config.top_k, top_p=config.top_p)
    whole = [system.sampling(4, temperature=temperature) for temperature in temperatures(system)]
    return [*whole, own] if own.truncates else whole


def _mean_support(sampled: list[Sampled]) -> float:
    return float(np.concatenate([one.support_sizes for item in sampled for one in item.completions]).mean())


def temperatures(system: System) -> list[float]:
    """1, and the run's or another."""
    own = system.config.generator.temperature
    return [1.0, OTHER_TEMPERATURE if own == 1 else own]


CHECK = Check(
    "logprobs",
    run,
    "Do not train: every importance ratio would be wrong. When the logprobs are another version's, weights did not "
    "reach the model. Else try model.dtype=float32 and generator.enforce_eager=true: what mends it names the cause.",
)
