"""What CPUs and GPUs allow."""

from __future__ import annotations

from typing import Literal

from asyncrl.config.schema import Config

Device = Literal["cpu", "gpu"]


def device_problems(config: Config, device: Device) -> list[str]:
    problems = []
    generator, learner, share_gpu = config.generator, config.learner, config.cluster.share_gpu
    if device == "cpu" and share_gpu:
        problems.append("cluster.share_gpu=true needs a GPU and this run is on CPU; leave it out")
    if share_gpu and (generator.count, generator.tensor_parallel, learner.count) != (1, 1, 1):
        problems.append(
            "cluster.share_gpu=true is for one generator and one learner, but generator.count="
            f"{generator.count}, generator.tensor_parallel={generator.tensor_parallel}, learner.count={learner.count}"
        )
    return problems
