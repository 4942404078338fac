"""The section `lora`: keys that nothing would read, and what an adapter does not go with."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from asyncrl.config.engines import engine_names
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
    several_engines = len(set(engine_names(config.generator))) > 1
    if lora.publish_dtype != "auto" and (several_engines or config.publish.engine not in ("auto", "adapter")):
        given = (
            f"generator.engine={config.generator.engine}"
            if several_engines
            else f"publish.engine={config.publish.engine}"
        )
        return [
            f"lora.publish_dtype={lora.publish_dtype} with {given}: merged weights travel, not the adapter; leave "
            "lora.publish_dtype out"
        ]
    return []


def target_problems(lora: LoraConfig, shape: ModelShape) -> list[str]:
    known = sorted({layer.name for layer in shape.linear_layers})
    return [
        f"lora.targets: the model has no linear layer {target!r} that can have an adapter; it has {', '.join(known)}"
        for target in lora.targets
        if target not in known
    ]
