"""The checks of `config/checks/check.py` for the `algorithm` section: options that contradict or undo each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from asyncrl.config.algorithm import AlgorithmConfig
from asyncrl.config.checks.advantage import advantage_problems
from asyncrl.config.schema import Config

ALGORITHM_CHOICES: dict[str, tuple[str, ...]] = {
    "algorithm.advantage": (
        "grpo",
        "dr_grpo",
        "rloo",
        "maxrl",
        "pass_at_k",
        "gdpo",
        "reinforce_pp",
        "reinforce_pp_baseline",
    ),
    "algorithm.credit": ("episode", "turn"),
    "algorithm.zero_variance": ("keep", "filter", "refill"),
    "algorithm.overlong": ("none", "mask", "penalty"),
    "algorithm.loss": ("ppo_clip", "decoupled_ppo", "gspo", "cispo", "sapo", "dppo_tv", "reinforce"),
    "algorithm.proximal": ("recompute", "interpolate"),
    "algorithm.aggregation": ("token_mean", "sequence_mean", "sequence_sum", "prompt_mean"),
    "algorithm.correction": (
        "none",
        "token_truncate",
        "token_mask",
        "sequence_truncate",
        "sequence_mask",
        "geometric_truncate",
        "geometric_mask",
    ),
    "algorithm.rejection": (
        "none",
        "token_k2",
        "token_k3",
        "sequence_mean_k2",
        "sequence_mean_k3",
        "sequence_max_k2",
        "sequence_max_k3",
        "negative_sequence_k1",
        "second_moment",
    ),
    "algorithm.kl_estimator": ("k1", "k2", "k3"),
    "algorithm.kl_in": ("loss", "reward"),
    "algorithm.reference": ("frozen", "ema"),
}

ALGORITHM_POSITIVE = (
    "algorithm.group_size",
    "algorithm.pass_k",
    "algorithm.max_refill_batches",
    "algorithm.clip_upper",
    "algorithm.sapo_temperature_positive",
    "algorithm.sapo_temperature_negative",
    "algorithm.aggregation_constant",
    "algorithm.correction_upper",
    "algorithm.rejection_bound",
    "algorithm.entropy_target",
    "algorithm.entropy_coef_step",
    "algorithm.entropy_coef_max",
)

ALGORITHM_NOT_NEGATIVE = (
    "algorithm.overlong_buffer_tokens",
    "algorithm.behaviour_coef",
    "algorithm.kl_coef",
    "algorithm.entropy_coef",
)

ALGORITHM_IN_RANGE: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "algorithm.clip_lower": ("in (0, 1]: the ratio is clipped to 1 − clip_lower", lambda value: 0 < value <= 1),
    "algorithm.dual_clip": ("above 1: it bounds what the clip leaves unbounded", lambda value: value > 1),
    "algorithm.correction_lower": ("in [0, 1]: the band has to hold a ratio of 1", lambda value: 0 <= value <= 1),
    "algorithm.correction_lag_decay": ("in (0, 1]", lambda value: 0 < value <= 1),
    "algorithm.reference_ema_decay": ("in (0, 1)", lambda value: 0 < value < 1),
    "algorithm.correction_veto": (
        "0, or in [1e-8, 1): ratios are clamped at e^−20 = 2e-9, and one of 1 must not be vetoed",
        lambda value: value == 0 or 1e-8 <= value < 1,
    ),
}

_PPO = ("ppo_clip", "decoupled_ppo")

READ_ONLY_WITH: dict[str, tuple[str, Callable[[AlgorithmConfig], bool]]] = {
    "pass_k": ("advantage=pass_at_k", lambda algorithm: algorithm.advantage == "pass_at_k"),
    "max_refill_batches": ("zero_variance=refill", lambda algorithm: algorithm.zero_variance == "refill"),
    "overlong_buffer_tokens": ("overlong=penalty", lambda algorithm: algorithm.overlong == "penalty"),
    **dict.fromkeys(
        ("clip_lower", "clip_upper"),
        ("loss other than reinforce and sapo", lambda algorithm: algorithm.loss not in ("reinforce", "sapo")),
    ),
    **dict.fromkeys(
        ("sapo_temperature_positive", "sapo_temperature_negative"),
        ("loss=sapo", lambda algorithm: algorithm.loss == "sapo"),
    ),
    "dual_clip": ("loss=ppo_clip or decoupled_ppo", lambda algorithm: algorithm.loss in _PPO),
    "proximal": ("loss=decoupled_ppo", lambda algorithm: algorithm.loss == "decoupled_ppo"),
    "aggregation_constant": ("aggregation=sequence_sum", lambda algorithm: algorithm.aggregation == "sequence_sum"),
    **dict.fromkeys(
        ("correction_lower", "correction_upper", "correction_lag_decay", "correction_normalise"),
        ("correction other than none", lambda algorithm: algorithm.correction != "none"),
    ),
    "rejection_bound": ("rejection other than none", lambda algorithm: algorithm.rejection != "none"),
    **dict.fromkeys(
        ("reference", "kl_estimator", "kl_in", "kl_unbiased"),
        ("kl_coef above 0", lambda algorithm: algorithm.kl_coef > 0),
    ),
    "reference_ema_decay": ("reference=ema", lambda algorithm: algorithm.reference == "ema"),
    **dict.fromkeys(
        ("entropy_coef_step", "entropy_coef_max"),
        ("entropy_target", lambda algorithm: algorithm.entropy_target is not None),
    ),
}
"""Key of the section → what it needs to be read at all."""

LARGEST_SEQUENCE_CLIP = 0.05
"""GSPO's paper clips at 3e-4 and 4e-4: a geometric mean over a sequence stays so near 1 that the clips meant for tokens
(0.2) hardly ever act, and a clip meant for sequences stops nearly every token."""


def algorithm_problems(config: Config) -> list[str]:
    """A line for each contradiction, with the keys and the fix."""
    algorithm = config.algorithm
    return [
        *advantage_problems(config),
        *_loss_problems(algorithm),
        *_correction_problems(algorithm),
        *_unused_problems(algorithm),
        *_overlong_problems(algorithm, config.generator.max_tokens),
        *_entropy_problems(algorithm),
        *_proximal_problems(config),
    ]


def algorithm_warnings(config: Config) -> list[str]:
    """A line for each choice that can run but should not."""
    algorithm, warnings = config.algorithm, []
    uncorrected = algorithm.loss in ("reinforce", "decoupled_ppo") and algorithm.correction == "none"
    if uncorrected and config.replay.max_staleness > 0:
        warnings.append(
            f"algorithm.loss={algorithm.loss} with algorithm.correction=none and replay.max_staleness="
            f"{config.replay.max_staleness}: tokens of older policies are trained on as if they were this one's"
        )
    if algorithm.loss == "reinforce" and algorithm.correction == "none" and config.learner.epochs_per_batch > 1:
        warnings.append(
            "algorithm.loss=reinforce with algorithm.correction=none and learner.epochs_per_batch="
            f"{config.learner.epochs_per_batch}: from the second pass on the tokens are another policy's, and nothing "
            "bounds how far it goes; set algorithm.correction=token_mask, or a loss with a clip"
        )
    k1_in_loss = algorithm.kl_estimator == "k1" and algorithm.kl_in == "loss"
    if algorithm.kl_coef > 0 and k1_in_loss and not algorithm.kl_unbiased:
        warnings.append(
            "algorithm.kl_estimator=k1 in the loss: its gradient has mean 0 and pulls nowhere; set "
            "algorithm.kl_unbiased=true, or algorithm.kl_in=reward"
        )
    return warnings


def _loss_problems(algorithm: AlgorithmConfig) -> list[str]:
    problems = []
    clips = f"algorithm.clip_lower={algorithm.clip_lower}, algorithm.clip_upper={algorithm.clip_upper}"
    largest = max(algorithm.clip_lower, algorithm.clip_upper)
    if algorithm.loss == "gspo" and largest > LARGEST_SEQUENCE_CLIP:
        problems.append(
            f"{clips} with algorithm.loss=gspo: bounds for a token's ratio on a sequence's, whose geometric mean "
            "hardly ever reaches them; set about 3e-4 and 4e-4"
        )
    if algorithm.loss in _PPO and largest < 0.01:
        problems.append(
            f"{clips} with algorithm.loss={algorithm.loss}: bounds for a sequence's ratio on a token's, which would "
            "stop nearly every token; set about 0.2, or algorithm.loss=gspo"
        )
    return problems


def _correction_problems(algorithm: AlgorithmConfig) -> list[str]:
    problems = []
    chosen = f"algorithm.correction={algorithm.correction}"
    if algorithm.correction_upper < 1:
        problems.append(
            f"algorithm.correction_upper={algorithm.correction_upper} must be 1 or above: the band has to hold a ratio "
            "of 1"
        )
    own_cut = {"cispo": "clip_lower, clip_upper", "sapo": "its gate"}.get(algorithm.loss)
    if own_cut and algorithm.correction.endswith("_truncate"):
        problems.append(
            f"{chosen} with algorithm.loss={algorithm.loss}, which cuts the importance weight itself ({own_cut}); "
            "set algorithm.correction=none or a mask"
        )
    if algorithm.loss == "gspo" and algorithm.correction.startswith("token_"):
        problems.append(
            f"{chosen} with algorithm.loss=gspo: bounds for single tokens on a loss of whole sequences; "
            "set algorithm.correction=none, or one that starts with sequence or geometric"
        )
    rejection = f"algorithm.rejection={algorithm.rejection}"
    if algorithm.loss == "gspo" and algorithm.rejection.startswith(("token_", "second_moment")):
        problems.append(
            f"{rejection} with algorithm.loss=gspo: a bound for single tokens on a loss of whole sequences; "
            "set algorithm.rejection=sequence_mean_k3 or another of sequences"
        )
    if algorithm.rejection != "none" and algorithm.rejection_bound is None:
        problems.append(f"{rejection} needs algorithm.rejection_bound, the largest divergence in nats that is trained")
    return problems


def _unused_problems(algorithm: AlgorithmConfig) -> list[str]:
    """A value other than the default that nothing would read."""
    defaults = AlgorithmConfig()
    problems = [
        f"algorithm.{key}={value} is read only with algorithm.{needs}, so that it would do nothing; set that, or leave "
        f"algorithm.{key} out"
        for key, (needs, is_read) in READ_ONLY_WITH.items()
        if (value := getattr(algorithm, key)) != getattr(defaults, key) and not is_read(algorithm)
    ]
    if algorithm.kl_unbiased and algorithm.kl_in == "reward":
        problems.append("algorithm.kl_unbiased=true with algorithm.kl_in=reward: it is a form of the KL in the loss")
    return problems


def _overlong_problems(algorithm: AlgorithmConfig, max_tokens: int) -> list[str]:
    buffer_tokens = algorithm.overlong_buffer_tokens
    if algorithm.overlong == "penalty" and not 0 < buffer_tokens <= max_tokens:
        return [
            f"algorithm.overlong=penalty needs algorithm.overlong_buffer_tokens in 1 … {max_tokens} "
            f"(generator.max_tokens), not {buffer_tokens}"
        ]
    return []


def _entropy_problems(algorithm: AlgorithmConfig) -> list[str]:
    if algorithm.entropy_target is not None and algorithm.entropy_coef > algorithm.entropy_coef_max:
        return [
            f"algorithm.entropy_coef={algorithm.entropy_coef} is above algorithm.entropy_coef_max="
            f"{algorithm.entropy_coef_max}, the largest that algorithm.entropy_target may set; lower it"
        ]
    return []


def _proximal_problems(config: Config) -> list[str]:
    """Interpolation is by the lag: at lag 0, after the step's first update, it can only take μ for π_prox."""
    algorithm, learner = config.algorithm, config.learner
    several_updates = learner.mini_batch_size not in (None, learner.batch_size) or learner.epochs_per_batch > 1
    if algorithm.proximal == "interpolate" and config.replay.max_staleness == 0 and several_updates:
        return [
            "algorithm.proximal=interpolate with replay.max_staleness=0 and several updates a step "
            f"(learner.mini_batch_size={learner.mini_batch_size}, learner.epochs_per_batch="
            f"{learner.epochs_per_batch}): every token has lag 0, where π_prox would be μ and "
            "nothing would correct the mismatch of the engines; set algorithm.proximal=recompute, or "
            "algorithm.loss=ppo_clip for the ratio to μ"
        ]
    return []
