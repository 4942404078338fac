"""The checks of `config/checks/check.py` for the `publish` section."""

from __future__ import annotations

from typing import Literal

from asyncrl.config.schema import Config

PublishEngine = Literal["broadcast", "sliced", "delta"]
PublishTransport = Literal["gloo", "nccl"]

PUBLISH_CHOICES: dict[str, tuple[str, ...]] = {
    "publish.engine": ("auto", "broadcast", "sliced", "delta"),
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


def publish_problems(config: Config, device: str) -> list[str]:
    """What cannot be published, or not so, on this device: cpu or gpu."""
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
    return problems
