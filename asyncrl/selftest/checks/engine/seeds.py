"""A seed gives the same tokens again; other seeds, and the other completions of a group, give others. At temperature 0
no seed matters."""

from __future__ import annotations

from asyncrl.errors import SelftestError
from asyncrl.selftest.result import Check, Figures
from asyncrl.selftest.system import Sampled, System


def run(system: System) -> Figures:
    has_seeds = system.config.generator.seeded_sampling is not False
    for generator in system.generators:
        prompt = [system.prompt(0, 8)]
        first, again, other = (
            _tokens(system.sample(generator, prompt, system.sampling(4, seed))[0]) for seed in (1, 1, 2)
        )
        if len(set(first)) == 1 and len(first[0]) > 1:
            raise SelftestError(f"{generator.name}: all completions of a group are the same")
        if first == other:
            raise SelftestError(f"{generator.name}: two seeds gave the same completions")
        if has_seeds and first != again:
            raise SelftestError(f"{generator.name}: one seed gave two different groups of completions")
        greedy = [
            _tokens(system.sample(generator, prompt, system.sampling(4, seed, temperature=0.0))[0]) for seed in (1, 2)
        ]
        if greedy[0] != greedy[1]:
            raise SelftestError(f"{generator.name}: at temperature 0 two seeds gave different completions")
    return {"seeded_sampling": str(has_seeds).lower()}


def _tokens(sampled: Sampled) -> list[tuple[int, ...]]:
    return [tuple(one.token_ids.tolist()) for one in sampled.completions]


CHECK = Check(
    "seeds",
    run,
    "When only the repetition fails, set generator.seeded_sampling=false: runs are then not repeatable, and nothing "
    "else suffers. When completions of a group are the same, do not train: advantages would be 0.",
)
