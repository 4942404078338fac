"""One step of the real learner on what the engine sampled: on-policy at first, and published after it."""

from __future__ import annotations

import math

from asyncrl.errors import SelftestError
from asyncrl.selftest.agreement import require_agreement, tolerance_of
from asyncrl.selftest.result import Check, Figures
from asyncrl.selftest.system import System

SAMPLES = 8


def run(system: System) -> Figures:
    system.publish()
    longest = len(system.prompt(0)) + system.sampling(1).max_tokens
    num_groups = max(1, system.config.learner.known_micro_batch_tokens * len(system.learners) // (SAMPLES * longest))
    temperature = system.config.generator.temperature
    prompts = [system.prompt(100 + index) for index in range(num_groups)]
    sampled = system.sample(system.generators[0], prompts, system.sampling(SAMPLES, temperature=temperature))
    groups = [one.group(index) for index, one in enumerate(sampled)]
    metrics = system.on_learners("train", system.version, groups)[0]
    ratio, grad_norm = metrics["mismatch/ratio_mean"], metrics["optim/grad_norm"]
    if not math.isfinite(grad_norm) or grad_norm == 0:
        raise SelftestError(f"the gradient's norm is {grad_norm:g} after a step on {len(groups)} groups")
    if not abs(ratio - 1) <= 2 * tolerance_of(system, temperature).mean:
        raise SelftestError(f"on the policy's own tokens the importance ratio is {ratio:.6g} in the mean, and not 1")
    system.publish()
    generator = system.generators[0]
    fresh = system.sample(generator, [system.prompt(5, 8)], system.sampling(4))
    require_agreement(system, fresh, system.version, 1.0, f"{generator.name}, after a training step", apart=False)
    num_tokens = sum(group.num_tokens for group in groups)
    return {"trained_tokens": num_tokens, "ratio": ratio, "grad_norm": grad_norm}


CHECK = Check(
    "training",
    run,
    "When only this check fails, the learner computes other logprobs in a training step than without one: compare "
    "model.attention, learner.gradient_checkpointing and model.dtype.",
)
