"""What the reward `judge` is given: its arguments, and what its prompt takes by name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from inspect import Parameter
from string import Formatter
from typing import Any
from urllib.parse import urlsplit

from asyncrl.errors import ConfigError

JUDGE = "judge"
PROMPT = """Question:
{prompt}

Reference answer:
{answer}

Answer to be graded:
{completion}

Does the answer to be graded agree with the reference? Explain in one sentence. End with a line `Score: x`, where x is a
number from 0 (wrong) to 1 (right)."""


@dataclass(frozen=True)
class JudgeConfig:
    """`args` of the term."""

    url: str
    """Up to and with `/v1`; `/chat/completions` is added."""
    model: str
    prompt: str = PROMPT
    """With {completion}, and what else a reward function may take by name: {prompt}, {answer}, any column."""
    api_key_env: str | None = None
    """The environment variable that holds the key; it must be set where the generators run."""
    max_concurrent: int = 16
    """Calls of one generator at a time."""
    timeout_s: float = 60.0
    """Deadline of one call."""
    max_attempts: int = 4
    """Calls for one score, when the endpoint cannot be reached or is overloaded; 1, 2, 4 … s apart."""
    max_calls: int | None = None
    """Budget of the run, over all generators and restarts; failed attempts count. null = none."""
    max_total_tokens: int | None = None
    """Budget of the run, by the endpoint's own count; calls under way may exceed it. null = none."""
    body: dict[str, Any] = field(default_factory=dict)
    """Further fields of the request, such as max_tokens; temperature is 0 unless it is one of them."""


def judge_config(args: Mapping[str, Any]) -> JudgeConfig:
    """Raises ConfigError: an argument is unknown, missing or impossible, or the key's variable is not set."""
    try:
        config = JudgeConfig(**args)
        fields = prompt_fields(config.prompt)
        is_http = urlsplit(config.url).scheme in ("http", "https")
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"reward.terms: judge: args: {error}; its arguments are in docs/rewards.md") from error
    problems = []
    if not is_http:
        problems.append(f"url={config.url!r} must begin with http:// or https://")
    if "completion" not in fields:
        problems.append("prompt must have {completion}, what is to be judged")
    if config.api_key_env is not None and not os.environ.get(config.api_key_env):
        problems.append(f"api_key_env={config.api_key_env}: this environment variable is not set")
    for name in ("max_concurrent", "timeout_s", "max_attempts", "max_calls", "max_total_tokens"):
        value = getattr(config, name)
        if value is not None and not (isinstance(value, int | float) and value > 0):
            problems.append(f"{name}={value!r} must be a number above 0")
    if problems:
        raise ConfigError(f"reward.terms: judge: args: {'; '.join(problems)}")
    return config


def prompt_fields(prompt: str) -> list[str]:
    """The names in braces.

    Raises:
        ValueError: a brace stands alone, or a field is none by name.
    """
    fields = [name for _, name, _, _ in Formatter().parse(prompt) if name is not None]
    wrong = [name for name in fields if not name.isidentifier()]
    if wrong:
        raise ValueError(f"prompt: {{{wrong[0]}}} is no name; write {{{{ and }}}} for braces")
    return fields


def prompt_parameters(config: JudgeConfig) -> tuple[Parameter, ...]:
    """What the prompt takes by name, as of a function."""
    return tuple(Parameter(name, Parameter.KEYWORD_ONLY) for name in dict.fromkeys(prompt_fields(config.prompt)))
