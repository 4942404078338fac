"""Completions are whole: they end by EOS or at their length, with a logprob and a version for each token, and the text
is that of the tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from asyncrl.errors import SelftestError
from asyncrl.generate.engines.base import Sampling
from asyncrl.selftest.load import NUM_TRIES, Load
from asyncrl.selftest.result import Check, Figures
from asyncrl.selftest.system import Part, Sampled, System
from asyncrl.types import Completion


def run(system: System) -> Figures:
    num_ended = num_cut = 0
    for generator in system.generators:
        samplings = [system.sampling(8), system.sampling(4, max_tokens=2)]
        prompts = [system.prompt(seed, 5) for seed in range(4)]
        for sampling in samplings:
            sampled = system.sample(generator, prompts, sampling)
            require_whole(system, sampled, sampling, generator.name)
            num_ended += _count(sampled, "stop")
            num_cut += _count(sampled, "length")
        _require_whole_across_a_publish(system, generator)
    return {"ended_by_eos": num_ended, "cut_at_their_length": num_cut}


def _require_whole_across_a_publish(system: System, generator: Part) -> None:
    for _ in range(NUM_TRIES):
        with Load(system, generator) as load:
            system.publish()
        sampled = load.sampled()
        require_whole(system, sampled, system.sampling(1), f"{generator.name}, during a publish")
        if any(len(np.unique(completion.versions)) > 1 for one in sampled for completion in one.completions):
            return


def require_whole(system: System, sampled: Sequence[Sampled], sampling: Sampling, where: str) -> None:
    """
    Raises:
        SelftestError: names what is wrong with a completion.
    """
    for one in sampled:
        if len(one.completions) != sampling.num_samples:
            raise SelftestError(f"{where}: {len(one.completions)} completions instead of {sampling.num_samples}")
        for completion in one.completions:
            if (problem := _problem(system, completion, sampling.max_tokens)) is not None:
                raise SelftestError(f"{where}: a completion {problem}")


def _problem(system: System, completion: Completion, max_tokens: int) -> str | None:
    tokens, length = completion.token_ids, len(completion.token_ids)
    is_eos = np.isin(tokens, system.eos_token_ids[:1])
    if not 1 <= length <= max_tokens:
        return f"has {length} tokens, where 1 to {max_tokens} were asked for"
    if not length == len(completion.logprobs) == len(completion.versions):
        return f"has {length} tokens, {len(completion.logprobs)} logprobs and {len(completion.versions)} versions"
    if not np.isfinite(completion.logprobs).all() or (completion.logprobs > 1e-4).any():
        return f"has a logprob of {completion.logprobs.max():g}"
    if is_eos[:-1].any():
        return f"goes on for {length - 1 - int(is_eos.argmax())} tokens after its EOS"
    if completion.finish_reason == "stop" and tokens[-1] not in system.eos_token_ids:
        return f"stopped at token {tokens[-1]}, which is no EOS"
    if completion.finish_reason == "length" and length < max_tokens:
        return f"was cut at {length} tokens, where {max_tokens} were allowed"
    if completion.text != system.decode(tokens.tolist()):
        return f"says {completion.text!r:.60}, and its tokens are {system.decode(tokens.tolist())!r:.60}"
    return None


def _count(sampled: Sequence[Sampled], reason: str) -> int:
    return sum(completion.finish_reason == reason for one in sampled for completion in one.completions)


CHECK = Check(
    "completions",
    run,
    "Do not train: tokens would be scored that the policy never sampled, or answers cut that it finished. Compare the "
    "EOS of tokenizer, config.json and generation_config.json in the model's folder; then report it.",
)
