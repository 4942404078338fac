"""What a reward function may ask for, by name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Question:
    """One row of the data, as the rewards see it."""

    prompt: str
    answer: str
    columns: str = ""
    """A JSON object: `messages`, an answer that is a list or an object, and the columns that the functions ask for."""

    def values(self) -> dict[str, Any]:
        """By name; a prompt without messages is one message of the user."""
        values: dict[str, Any] = {
            "prompt": self.prompt,
            "messages": [{"role": "user", "content": self.prompt}],
            "answer": self.answer,
        }
        return values | (json.loads(self.columns) if self.columns else {})


@dataclass(frozen=True)
class Sample:
    """One completion to be scored."""

    completion: str
    tokens: Sequence[int] = ()
    """Its token ids, with the end of sequence when it was sampled."""


def sample_values(question: Question, sample: Sample) -> dict[str, Any]:
    """All that a function may take, by name."""
    return {**question.values(), "completion": sample.completion, "tokens": list(sample.tokens)}
