"""A prompt that was cached under an older version is computed anew by the next one."""

from __future__ import annotations

from asyncrl.selftest.agreement import require_agreement
from asyncrl.selftest.result import Check, Figures, NotHereError
from asyncrl.selftest.system import System

LEAST_PROMPT_TOKENS = 32


def run(system: System) -> Figures:
    figures: Figures = {}
    prompt = system.prompt(seed=7)
    if len(prompt) < LEAST_PROMPT_TOKENS:
        raise NotHereError(f"data.max_prompt_tokens={len(prompt)}: too short to be cached in blocks")
    for generator in system.generators:
        system.publish(kv_cache="keep")
        system.sample(generator, [prompt], system.sampling(2))
        system.publish(kv_cache="keep")
        sampled = system.sample(generator, [prompt], system.sampling(4))
        found = require_agreement(system, sampled, system.version, 1.0, f"{generator.name}, a cached prompt")
        figures |= {f"{generator.name} {name}": value for name, value in found.items()}
    return {"prompt_tokens": len(prompt), **figures}


CHECK = Check(
    "prefix cache",
    run,
    "Set publish.kv_cache=recompute, which empties the cache at each publish, and report it.",
)
