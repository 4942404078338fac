"""`algorithm.advantage`: what it compares has to be there, and nothing may change it behind its back."""

from __future__ import annotations

from asyncrl.config.algorithm import AlgorithmConfig
from asyncrl.config.schema import Config


def advantage_problems(config: Config) -> list[str]:
    return [*_group_problems(config.algorithm), *_gdpo_problems(config)]


def _group_problems(algorithm: AlgorithmConfig) -> list[str]:
    if algorithm.advantage == "pass_at_k" and algorithm.pass_k >= algorithm.group_size > 1:
        return [
            f"algorithm.pass_k={algorithm.pass_k} is not below algorithm.group_size={algorithm.group_size}: the best "
            "of all completions is the same for each of them, so that every advantage would be 0; lower it"
        ]
    if algorithm.group_size != 1:
        return []
    if algorithm.zero_variance != "keep":
        return [
            f"algorithm.group_size=1 with algorithm.zero_variance={algorithm.zero_variance}: the rewards of a single "
            "completion are always equal, so that nothing would be trained; set algorithm.zero_variance=keep"
        ]
    if algorithm.advantage == "reinforce_pp":
        return []
    return [
        f"algorithm.group_size=1 with algorithm.advantage={algorithm.advantage}: the advantage compares the "
        "completions of one prompt, so that of a single one is always 0 (and its std is undefined); "
        "set algorithm.group_size to 2 or more, or algorithm.advantage=reinforce_pp"
    ]


def _gdpo_problems(config: Config) -> list[str]:
    """It takes the rewards apart by their terms, so what only changes their sum has no place in it."""
    algorithm, chosen = config.algorithm, "algorithm.advantage=gdpo"
    if algorithm.advantage != "gdpo":
        return []
    problems = []
    if config.environment.name is not None:
        problems.append(
            f"{chosen} with environment.name={config.environment.name}, whose reward has no terms; set "
            "algorithm.advantage=grpo"
        )
    elif sum(term.weight != 0 for term in config.reward.terms) < 2:
        problems.append(
            f"{chosen} normalises each of several rewards by itself, and reward.terms has not two with a weight other "
            "than 0; add one, or set algorithm.advantage=grpo"
        )
    if algorithm.overlong == "penalty":
        problems.append(
            f"{chosen} with algorithm.overlong=penalty, which is taken from the sum of the rewards; set "
            "algorithm.overlong=mask or none, or score the length in a term of its own"
        )
    if algorithm.kl_coef > 0 and algorithm.kl_in == "reward":
        problems.append(
            f"{chosen} with algorithm.kl_in=reward, which is taken from the sum of the rewards; set "
            "algorithm.kl_in=loss"
        )
    return problems
