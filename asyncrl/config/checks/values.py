"""What each key may be by itself: one of some choices, or a number in a range."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from operator import attrgetter
from typing import Any

from asyncrl.config.checks.algorithm import (
    ALGORITHM_CHOICES,
    ALGORITHM_IN_RANGE,
    ALGORITHM_NOT_NEGATIVE,
    ALGORITHM_POSITIVE,
)
from asyncrl.config.checks.environment import ENVIRONMENT_POSITIVE
from asyncrl.config.checks.lora import LORA_CHOICES
from asyncrl.config.checks.publish import PUBLISH_CHOICES, RENAMED_ENGINES
from asyncrl.config.schema import Config

CHOICES: dict[str, tuple[str, ...]] = {
    "model.dtype": ("auto", "float32", "bfloat16"),
    "data.overlong_prompts": ("drop", "error"),
    **ALGORITHM_CHOICES,
    "learner.schedule": ("constant", "linear", "cosine"),
    "learner.checkpointing_keeps": ("nothing", "attention", "matmuls"),
    "learner.keep_gathered": ("nothing", "gradients", "all"),
    "replay.stragglers": ("wait", "window", "mask", "requeue"),
    "replay.durability": ("full", "normal", "off"),
    **PUBLISH_CHOICES,
    **LORA_CHOICES,
    "cluster.device": ("auto", "cpu", "gpu"),
}

_POSITIVE = (
    "data.max_prompt_tokens",
    "reward.num_workers",
    "reward.time_limit_s",
    *ENVIRONMENT_POSITIVE,
    *ALGORITHM_POSITIVE,
    "generator.count",
    "generator.tensor_parallel",
    "generator.temperature",
    "generator.max_tokens",
    "generator.max_groups_in_flight",
    "generator.kv_cache_bytes",
    "learner.count",
    "learner.batch_size",
    "learner.mini_batch_size",
    "learner.epochs_per_batch",
    "learner.micro_batch_tokens",
    "learner.context_parallel",
    "learner.lr",
    "learner.eps",
    "learner.max_grad_norm",
    "learner.num_threads",
    "lora.rank",
    "lora.alpha",
    "replay.lease_timeout_s",
    "replay.max_lease_attempts",
    "publish.every",
    "publish.timeout_s",
    "publish.bucket_bytes",
    "run.steps",
    "run.epochs",
    "run.eval_prompts",
    "run.eval_samples",
    "run.startup_timeout_s",
    "run.step_timeout_s",
    "run.heartbeat_timeout_s",
    "run.no_progress_timeout_s",
    "run.stop_timeout_s",
)

_NOT_NEGATIVE = (
    "model.warmup_steps",
    "reward.max_failures",
    *ALGORITHM_NOT_NEGATIVE,
    "generator.max_restarts",
    "learner.warmup_steps",
    "learner.weight_decay",
    "learner.max_restarts",
    "replay.max_staleness",
    "replay.min_staleness",
    "replay.max_quarantined",
    "replay.window",
    "data.curriculum_visits",
    "replay.max_restarts",
    "run.seed",
    "run.save_every",
    "run.eval_every",
    "run.eval_temperature",
)

_IN_RANGE: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **ALGORITHM_IN_RANGE,
    "generator.gpu_memory_utilization": ("in (0, 1]", lambda value: 0 < value <= 1),
    "learner.beta1": ("in [0, 1)", lambda value: 0 <= value < 1),
    "learner.beta2": ("in [0, 1)", lambda value: 0 <= value < 1),
    "replay.ess_target": ("in (0, 1)", lambda value: 0 < value < 1),
    "replay.port": ("in 0 … 65535", lambda value: 0 <= value <= 65535),
}


def choice_problems(config: Config) -> list[str]:
    problems = []
    for key, choices in CHOICES.items():
        value = attrgetter(key)(config)
        if value not in choices:
            near = difflib.get_close_matches(value, choices, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            if key == "publish.engine" and value in RENAMED_ENGINES:
                hint = f"; say {RENAMED_ENGINES[value]} instead"
            problems.append(f"{key}={value!r} is none of {', '.join(choices)}{hint}")
    return problems


def range_problems(config: Config) -> list[str]:
    ranges = {
        **dict.fromkeys(_POSITIVE, ("above 0", lambda value: value > 0)),
        **dict.fromkeys(_NOT_NEGATIVE, ("0 or above", lambda value: value >= 0)),
        **_IN_RANGE,
    }
    values = {key: attrgetter(key)(config) for key in ranges}
    return [
        f"{key}={values[key]} must be {description}"
        for key, (description, allowed) in ranges.items()
        if values[key] is not None and not (math.isfinite(values[key]) and allowed(values[key]))
    ]
