"""Requests that are in the engine at once are each sampled as asked: with their own temperature, length and seed."""

from __future__ import annotations

from asyncrl.selftest.agreement import require_agreement
from asyncrl.selftest.checks.engine.completions import require_whole
from asyncrl.selftest.checks.engine.logprobs import temperatures
from asyncrl.selftest.result import Check, Figures
from asyncrl.selftest.system import Request, System

MOST_REQUESTS = 128
PROMPT_TOKENS = (3, 40)


def run(system: System) -> Figures:
    system.publish()
    requests = [_request(system, number) for number in range(min(system.max_num_sequences, MOST_REQUESTS))]
    for generator in system.generators:
        sampled = system.sample_together(generator, requests)
        for request, one in zip(requests, sampled, strict=True):
            require_whole(system, [one], request.sampling, generator.name)
        for temperature in temperatures(system):
            own = [one for r, one in zip(requests, sampled, strict=True) if r.sampling.temperature == temperature]
            require_agreement(system, own, system.version, temperature, f"{generator.name}, {len(requests)} at once")
    return {"requests": len(requests)}


def _request(system: System, number: int) -> Request:
    """The two temperatures in turn, training beside an evaluation; lengths of every size."""
    one, other = temperatures(system)
    whole = system.sampling(1)
    sampling = system.sampling(
        1, seed=number, temperature=(one, other)[number % 2], max_tokens=1 + number % whole.max_tokens
    )
    least, most = PROMPT_TOKENS
    return Request(system.prompt(2000 + number, least + number % (most - least)), sampling)


CHECK = Check(
    "mixed requests",
    run,
    "Do not train: requests that decode together take something of one another. An evaluation samples beside training, "
    "at a temperature of its own. Look at what the engine keeps by batch and not by request.",
)
