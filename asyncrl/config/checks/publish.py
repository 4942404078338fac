"""The section `publish`: what travels, how, and how often under the bound of η."""

from __future__ import annotations

from typing import Literal

from asyncrl.config.checks.devices import Device
from asyncrl.config.engines import engine_names
from asyncrl.config.schema import Config

PublishEngine = Literal["broadcast", "sliced", "delta", "adapter"]
PublishTransport = Literal["gloo", "nccl"]

PUBLISH_CHOICES: dict[str, tuple[str, ...]] = {
    "publish.engine": ("auto", "broadcast", "sliced", "delta", "adapter"),
    "publish.transport": ("auto", "gloo", "nccl"),
    "publish.kv_cache": ("keep", "recompute"),
}

RENAMED_ENGINES = {
    "gloo": "publish.engine=broadcast publish.transport=gloo",
    "gloo_sliced": "publish.engine=sliced publish.transport=gloo",
    "gloo_delta": "publish.engine=delta publish.transport=gloo",
    "nccl": "publish.engine=broadcast publish.transport=nccl",
}
"""Values of publish.engine before what travels and how it travels were two keys."""


def publish_problems(config: Config, device: Device) -> list[str]:
    """What the device and the other keys allow."""
    problems = []
    if config.publish.transport == "nccl" and device == "cpu":
        problems.append("publish.transport=nccl needs GPUs and this run is on CPU; set publish.transport=auto")
    if config.publish.transport == "nccl" and config.cluster.share_gpu:
        problems.append(
            "publish.transport=nccl with cluster.share_gpu=true: NCCL cannot put two ranks on one GPU; use gloo"
        )
    if config.publish.engine == "delta" and not config.publish.staged:
        problems.append(
            "publish.engine=delta keeps what came last in the workers, for which publish.staged=false leaves no room; "
            "set publish.engine=sliced or publish.staged=true"
        )
    if len(set(engine_names(config.generator))) > 1 and config.publish.engine not in ("auto", "broadcast"):
        problems.append(
            f"publish.engine={config.publish.engine} with generator.engine={config.generator.engine}: workers that get "
            "the same slices must cut them alike, and two engines do not; set publish.engine=broadcast"
        )
    return problems


def cadence_problems(config: Config) -> list[str]:
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
