"""Which model is tested: the configuration's own, or in place of `tiny` a random one with room for long prompts."""

from __future__ import annotations

import string
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, GenerationConfig

from asyncrl.config.schema import Config
from asyncrl.data.tiny_model import build_tiny_model
from asyncrl.generate.engines.base import completion_text
from asyncrl.selftest.system import MAX_NEW_TOKENS, MAX_PROMPT_TOKENS

CHARACTERS = string.ascii_letters + string.digits
TINY_NOISE = {"float32": 2.0, "bfloat16": 0.5}
OWN_NOISE = 0.1
"""How far versions are apart: a random model may change altogether, but bfloat16 would round its larger logits by more
than is tolerated; a trained one shall stay a language model."""


def with_model(config: Config, parent: Path) -> Config:
    """The configuration to test.

    Args:
        parent: of the tiny model's folder.
    """
    if config.model.path != "tiny":
        return config
    rows = [(CHARACTERS, CHARACTERS), ("a" * 100, "b")]
    folder = build_tiny_model(parent.resolve(), rows, warmup_steps=0, seed=config.run.seed)
    return replace(
        config,
        model=replace(config.model, path=str(folder)),
        data=replace(config.data, max_prompt_tokens=max(MAX_PROMPT_TOKENS, config.data.max_prompt_tokens)),
        generator=replace(config.generator, max_tokens=max(MAX_NEW_TOKENS, config.generator.max_tokens)),
    )


def noise_scale(is_tiny: bool, dtype: str) -> float:
    """
    Args:
        is_tiny: whether `with_model` made the model.
        dtype: `model.dtype`, resolved.
    """
    return TINY_NOISE[dtype] if is_tiny else OWN_NOISE


def read_tokenizer(config: Config) -> Any:
    return AutoTokenizer.from_pretrained(config.model.path, trust_remote_code=config.model.trust_remote_code)


def text_of(tokenizer: Any) -> Callable[[list[int]], str]:
    """Token ids → the text of a completion."""
    return partial(completion_text, tokenizer)


def eos_token_ids(config: Config, tokenizer: Any) -> list[int]:
    """First the tokenizer's own, then the model folder's others."""
    try:
        others = GenerationConfig.from_pretrained(config.model.path).eos_token_id or []
    except OSError:
        others = []
    others = [others] if isinstance(others, int) else list(others)
    return list(dict.fromkeys([tokenizer.eos_token_id, *others]))
