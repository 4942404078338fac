"""The section `lora`: keys that nothing would read, and what an adapter does not go with."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from asyncrl.config.lora import LoraConfig
from asyncrl.config.schema import Config

LORA_CHOICES: dict[str, tuple[str, ...]] = {"lora.publish_dtype": ("auto", "bfloat16")}

if TYPE_CHECKING:  # it loads torch
    from asyncrl.config.model_shape import ModelShape


def lora_problems(config: Config) -> list[str]:
    lora = config.lora
    if lora.rank is None:
        problems = [
            f"lora.{key}={value} without lora.rank, so every weight is trained; set lora.rank, such as lora.rank=16"
            for key, value in (
                ("alpha", lora.alpha),
                ("targets", lora.targets),
                ("publish_dtype", lora.publish_dtype != "auto" and lora.publish_dtype),
            )
            if value
        ]
        if config.publish.engine == "adapter":
            problems.append("publish.engine=adapter without lora.rank: there is no adapter; set publish.engine=auto")
        return problems
    if find_spec("peft") is None:
        return [f"lora.rank={lora.rank} needs the package peft, which is not installed: pip install 'asyncrl[lora]'"]
    if config.algorithm.reference == "ema" and config.algorithm.kl_coef > 0:
        return [
            f"algorithm.reference=ema with lora.rank={lora.rank}: the reference of an adapter is the model without it; "
            "set algorithm.reference=frozen"
        ]
    if lora.publish_dtype != "auto" and config.publish.engine not in ("auto", "adapter"):
        return [
            f"lora.publish_dtype={lora.publish_dtype} with publish.engine={config.publish.engine}: merged weights "
            "travel, not the adapter; set publish.engine=auto, or leave lora.publish_dtype out"
        ]
    return []


def target_problems(lora: LoraConfig, shape: ModelShape) -> list[str]:
    known = sorted({layer.name for layer in shape.linear_layers})
    return [
        f"lora.targets: the model has no linear layer {target!r} that can have an adapter; it has {', '.join(known)}"
        for target in lora.targets
        if target not in known
    ]
