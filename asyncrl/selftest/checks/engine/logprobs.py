"""After a publish the engine's logprobs are the learner's, at every temperature and in every generator."""

from __future__ import annotations

from asyncrl.selftest.agreement import require_agreement
from asyncrl.selftest.result import Check, Figures
from asyncrl.selftest.system import System

OTHER_TEMPERATURE = 0.5


def run(system: System) -> Figures:
    figures: Figures = {}
    system.publish()
    for temperature in temperatures(system):
        for generator in system.generators:
            prompts = [system.prompt(seed, num_tokens) for seed, num_tokens in enumerate((3, 40, None))]
            sampled = system.sample(generator, prompts, system.sampling(4, temperature=temperature))
            found = require_agreement(system, sampled, system.version, temperature, generator.name)
            figures |= {f"{generator.name} T={temperature:g} {name}": value for name, value in found.items()}
    return figures


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
