"""Tokens are drawn from the policy itself: neither from a part of its vocabulary nor at another temperature.

Of tokens drawn from π, log π(token) has the mean −entropy. The sum of log π + entropy over all tokens is therefore
0 but for chance, and how far from it is told in standard errors. Each request has a seed of its own: with the same one
similar prompts would be answered alike, and their tokens would count as independent.
"""

from __future__ import annotations

import numpy as np

from asyncrl.errors import SelftestError
from asyncrl.selftest.checks.engine.logprobs import temperatures
from asyncrl.selftest.result import Check, Figures
from asyncrl.selftest.system import Request, System

NUM_PROMPTS, NUM_SAMPLES = 16, 8
MOST_STANDARD_ERRORS = 5.0
"""Chance alone goes beyond it once in a million checks."""


def run(system: System) -> Figures:
    figures: Figures = {}
    for temperature in temperatures(system):
        for generator in system.generators:
            requests = [_request(system, number, temperature) for number in range(NUM_PROMPTS)]
            sampled = system.sample_together(generator, requests)
            scores = system.score(sampled, system.version, temperature)
            surprise = np.concatenate([one.logprobs + one.entropies for one in scores])
            errors = float(surprise.mean() / (surprise.std() / np.sqrt(len(surprise)) + 1e-9))
            figures[f"{generator.name} T={temperature:g} standard_errors"] = errors
            if not abs(errors) <= MOST_STANDARD_ERRORS:
                likely = "more" if errors > 0 else "less"
                raise SelftestError(
                    f"{generator.name}: {len(surprise)} tokens at temperature {temperature:g} are {likely} likely than "
                    f"tokens drawn from the policy are, by {abs(errors):.0f} standard errors"
                )
    return figures


def _request(system: System, number: int, temperature: float) -> Request:
    sampling = system.sampling(NUM_SAMPLES, seed=NUM_SAMPLES * number, temperature=temperature)
    return Request(system.prompt(number, 8), sampling)


CHECK = Check(
    "sampling",
    run,
    "The engine samples from another distribution than it was asked for: a top-k, top-p, min-p or temperature of its "
    "own, often from generation_config.json in the model's folder. Remove it there.",
)
