"""The section `data` of the configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

TEMPLATE_CHOICES = ("auto", "always", "never")
"""Of data.chat_template; anything else is a file."""

MIXTURE = "mixture"
"""Of data.train and data.eval: the data sets of data.mixture."""


@dataclass
class MixtureSet:
    """One of the data sets that are mixed."""

    name: str = "???"
    """Its name in metrics and messages."""
    path: str = "???"
    """A file, a folder or a data set of the hub, as data.train."""
    eval: str | None = None
    """As data.eval; null = the test split of path, which then is a folder."""
    weight: float = 1.0
    """Its share of the prompts, beside the weights of the others; they need not sum to 1."""
    prompt_column: str | None = None
    """null = data.prompt_column."""
    answer_column: str | None = None
    """null = data.answer_column."""


@dataclass
class DataConfig:
    """The prompts. Files are .parquet, .jsonl or .json (these two also .gz or .zst); a folder means its train and test
    (or validation) files, which may be shards (docs/data.md)."""

    train: str = "???"
    """Training prompts: a file, a folder, or hf://datasets/OWNER/NAME[@REVISION][/FOLDER] of the hub. `arithmetic`
    generates the addition task on the spot; `environment`: the environment's own; `mixture`: those of data.mixture."""
    eval: str | None = None
    """Held-out prompts, as data.train; null turns evaluation off."""
    prompt_column: str = "prompt"
    """A column, or a dotted path into nested ones: text, or a list of messages with role and content."""
    answer_column: str = "answer"
    """A column, or a dotted path into nested ones, such as `reward_model.ground_truth`: text, a number, a list or an
    object."""
    chat_template: str = "auto"
    """auto (apply the tokenizer's when it has one) | always | never | a file with a Jinja template."""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of the template, such as `enable_thinking: false`."""
    system_prompt: str | None = None
    max_prompt_tokens: int = 512
    overlong_prompts: str = "drop"
    """drop (and say how many) | error."""
    shuffle: bool = True
    curriculum_visits: int = 0
    """Skip a prompt of which all completions were correct, or none, in each of its last so many visits; after as many
    skips it is visited again. 0 = skip none."""
    mixture: list[MixtureSet] = field(default_factory=list)
    """Several data sets, drawn by their weights: with data.train=mixture, and data.eval=mixture for their test
    splits."""
