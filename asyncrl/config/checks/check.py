"""What one key allows another to be: every impossible configuration is refused before anything starts.

`check` collects all problems, so that a user mends a config once. Types and unknown keys are `config_file.load`'s part;
what the cluster has room for is `launch.topology`'s.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal

from asyncrl.config.checks.algorithm import (
    ALGORITHM_CHOICES,
    ALGORITHM_IN_RANGE,
    ALGORITHM_NOT_NEGATIVE,
    ALGORITHM_POSITIVE,
    algorithm_problems,
    algorithm_warnings,
)
from asyncrl.config.checks.cluster import cluster_problems, cluster_warnings
from asyncrl.config.schema import Config, ReplayConfig
from asyncrl.errors import ConfigError

if TYPE_CHECKING:  # it loads torch
    from asyncrl.config.model_shape import ModelShape

Device = Literal["cpu", "gpu"]

CHOICES: dict[str, tuple[str, ...]] = {
    "model.dtype": ("auto", "float32", "bfloat16"),
    "data.chat_template": ("auto", "always", "never"),
    "data.overlong_prompts": ("drop", "error"),
    **ALGORITHM_CHOICES,
    "learner.schedule": ("constant", "linear", "cosine"),
    "replay.stragglers": ("wait", "mask", "requeue"),
    "replay.durability": ("full", "normal", "off"),
    "publish.engine": ("auto", "gloo", "gloo_sliced", "gloo_delta", "nccl"),
    "publish.kv_cache": ("keep", "recompute"),
    "cluster.device": ("auto", "cpu", "gpu"),
}

_POSITIVE = (
    "data.max_prompt_tokens",
    "reward.num_workers",
    "reward.time_limit_s",
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
    "learner.micro_batch_tokens",
    "learner.lr",
    "learner.eps",
    "learner.max_grad_norm",
    "learner.num_threads",
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


def check(config: Config, device: Device, shape: ModelShape | None = None) -> list[str]:
    """Refuse what cannot run; return warnings about what can but should not.

    Args:
        config: as `config_file.load` gave it.
        device: what the roles run on, resolved.
        shape: of the model, where it is known; without it the checks against the model are left out.

    Raises:
        ConfigError: at least one problem; the message has a line for each, with the keys, the numbers and the fix.
    """
    problems = [
        *_choice_problems(config),
        *_range_problems(config),
        *_batch_problems(config),
        *algorithm_problems(config),
        *_staleness_problems(config.replay),
        *_cadence_problems(config),
        *_sampling_problems(config),
        *_run_problems(config),
        *_device_problems(config, device),
        *cluster_problems(config.cluster),
    ]
    if shape is not None:
        problems += _model_problems(config, shape)
    if problems:
        raise ConfigError("\n".join(problems))
    return _warnings(config, device)


def _choice_problems(config: Config) -> list[str]:
    problems = []
    for key, choices in CHOICES.items():
        value = attrgetter(key)(config)
        if value not in choices:
            near = difflib.get_close_matches(value, choices, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            problems.append(f"{key}={value!r} is none of {', '.join(choices)}{hint}")
    return problems


def _range_problems(config: Config) -> list[str]:
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


def _batch_problems(config: Config) -> list[str]:
    problems = []
    batch_size, group_size = config.learner.batch_size, config.algorithm.group_size
    mini_batch_size = config.learner.mini_batch_size or batch_size
    if mini_batch_size > 0 and batch_size % mini_batch_size:
        problems.append(
            f"learner.batch_size={batch_size} is not divisible by learner.mini_batch_size={mini_batch_size}; "
            "every optimizer update takes the same number of prompts"
        )
    num_sequences = mini_batch_size * group_size
    if 0 < num_sequences < config.learner.count:
        problems.append(
            f"learner.count={config.learner.count} ranks share the {num_sequences} completions of an update "
            f"(mini-batch {mini_batch_size} × group {group_size}), so some would never have work; "
            "use fewer learners or a larger batch"
        )
    return problems


def _staleness_problems(replay: ReplayConfig) -> list[str]:
    smallest = f"replay.min_staleness={replay.min_staleness}"
    if replay.ess_target is None and replay.min_staleness > 0:
        return [f"{smallest} is the smallest η of the controller, which is off; set replay.ess_target, such as 0.9"]
    if replay.min_staleness > replay.max_staleness:
        return [f"{smallest} is above replay.max_staleness={replay.max_staleness}; lower it"]
    return []


def _cadence_problems(config: Config) -> list[str]:
    """Between two publishes admission opens η + 1 batches, so the steps from one to the next must be no more."""
    every, replay, eval_every = config.publish.every, config.replay, config.run.eval_every
    if every < 1:
        return []
    problems = []
    key = "max_staleness" if replay.ess_target is None else "min_staleness"
    eta = getattr(replay, key)
    if every > eta + 1:
        problems.append(
            f"publish.every={every} with replay.{key}={eta}: the batches of {eta + 1} steps are admitted from one "
            f"publish to the next, so the run would stand still; set publish.every to {eta + 1} or less, or "
            f"replay.{key} to {every - 1} or more"
        )
    if eval_every % every:
        problems.append(
            f"run.eval_every={eval_every} is not divisible by publish.every={every}; only a version that is published "
            "can be evaluated"
        )
    return problems


def _sampling_problems(config: Config) -> list[str]:
    """Truncated sampling biases π_θ/μ: μ is renormalised over the kept tokens, the learner's π_θ over all of them."""
    fix = (
        "the learner's logprobs are over the whole vocabulary, so the ratio π_θ/μ would be biased for every token; set"
    )
    problems = []
    if config.generator.top_p != 1:
        problems.append(f"generator.top_p={config.generator.top_p}: {fix} generator.top_p=1")
    if config.generator.top_k > 0:
        problems.append(f"generator.top_k={config.generator.top_k}: {fix} generator.top_k=-1")
    return problems


def _run_problems(config: Config) -> list[str]:
    problems = []
    if config.run.eval_every > 0 and config.data.eval is None:
        problems.append(f"run.eval_every={config.run.eval_every} needs data.eval; set it, or run.eval_every=0")
    if not config.reward.terms:
        problems.append("reward.terms is empty; name at least one function, such as numeric")
    return problems


def _device_problems(config: Config, device: Device) -> list[str]:
    problems = []
    generator, learner, share_gpu = config.generator, config.learner, config.cluster.share_gpu
    if device == "cpu" and config.publish.engine == "nccl":
        problems.append("publish.engine=nccl needs GPUs and this run is on CPU; set publish.engine=auto")
    if config.publish.engine == "gloo_delta" and not config.publish.staged:
        problems.append(
            "publish.engine=gloo_delta keeps what came last in the workers, for which publish.staged=false leaves no "
            "room; set publish.engine=gloo_sliced or publish.staged=true"
        )
    if device == "cpu" and share_gpu:
        problems.append("cluster.share_gpu=true needs a GPU and this run is on CPU; leave it out")
    if share_gpu and (generator.count, generator.tensor_parallel, learner.count) != (1, 1, 1):
        problems.append(
            "cluster.share_gpu=true is for one generator and one learner, but generator.count="
            f"{generator.count}, generator.tensor_parallel={generator.tensor_parallel}, learner.count={learner.count}"
        )
    if share_gpu and config.publish.engine == "nccl":
        problems.append(
            "publish.engine=nccl with cluster.share_gpu=true: NCCL cannot put two ranks on one GPU; use gloo"
        )
    return problems


def _model_problems(config: Config, shape: ModelShape) -> list[str]:
    problems = []
    prompt, completion = config.data.max_prompt_tokens, config.generator.max_tokens
    if prompt + completion > shape.max_positions:
        problems.append(
            f"data.max_prompt_tokens={prompt} + generator.max_tokens={completion} = {prompt + completion} tokens, but "
            f"the model takes {shape.max_positions} (max_position_embeddings); lower one of the two"
        )
    # The rules of vLLM's parallel linear layers: heads are cut evenly, KV heads cut or, when too few, copied evenly.
    parts = config.generator.tensor_parallel
    key = f"generator.tensor_parallel={parts}"
    if parts < 1:
        return problems
    if shape.num_heads % parts:
        problems.append(f"{key} does not divide the model's {shape.num_heads} attention heads")
    if shape.num_kv_heads % parts and parts % shape.num_kv_heads:
        problems.append(f"{key} neither divides nor is a multiple of the model's {shape.num_kv_heads} KV heads")
    if shape.intermediate_size % parts:
        problems.append(f"{key} does not divide the model's intermediate size {shape.intermediate_size}")
    return problems


def _warnings(config: Config, device: Device) -> list[str]:
    warnings = [*algorithm_warnings(config), *cluster_warnings(config)]
    if device == "cpu" and config.model.dtype == "bfloat16":
        warnings.append("model.dtype=bfloat16 on CPU is 5 to 9 times slower than float32 without a bfloat16 ISA")
    if config.run.eval_samples > 1 and config.run.eval_temperature == 0:
        warnings.append(
            f"run.eval_samples={config.run.eval_samples} with run.eval_temperature=0: greedy completions are all alike"
        )
    if config.data.eval is not None and config.run.eval_every == 0:
        warnings.append("data.eval is set but run.eval_every=0: it is never used")
    if config.run.no_progress_timeout_s <= config.replay.lease_timeout_s:
        warnings.append(
            f"run.no_progress_timeout_s={config.run.no_progress_timeout_s} is not above replay.lease_timeout_s="
            f"{config.replay.lease_timeout_s}: one prompt that takes its whole time can end the run"
        )
    return warnings
