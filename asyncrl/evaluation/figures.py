"""Answers → the figures of each data set."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby

from rich.markup import escape
from rich.table import Table

from asyncrl.evaluation.estimators import Estimate, majority_at_k, mean_with_interval, pass_at_k
from asyncrl.rewards.final_answer import final_answer, final_number


@dataclass(frozen=True)
class Answer:
    """One completion, scored: a row of the answers' file."""

    data: str
    """The data file."""
    row: int
    sample: int
    """0, 1, 2, … of its prompt."""
    prompt: str
    reference: str
    completion: str
    final_answer: str | None
    """What counts as its vote in maj@k; None = it states none."""
    reward: float
    """NaN = it could not be scored."""
    correct: bool
    """The first reward term scored ≥ 1."""
    truncated: bool
    num_tokens: int


@dataclass(frozen=True)
class DataSetFigures:
    """What an evaluation found on one data file."""

    data: str
    num_prompts: int
    num_failed_prompts: int
    """Given up after replay.max_lease_attempts; in none of the figures."""
    num_samples: int
    """Completions of each prompt."""
    accuracy: dict[str, Estimate]
    """`pass@1`, and `pass@k` and `maj@k` of each k that was asked for."""
    reward_mean: float
    """Of the completions that could be scored; NaN of none."""
    num_unscored: int
    """Completions whose reward function failed; they count as wrong."""
    length_mean: float
    """Tokens."""
    truncated_fraction: float


def vote_of(completion: str) -> str | None:
    """The final answer in one spelling where it is a number, else as it stands; None when there is none."""
    number = final_number(completion)
    return final_answer(completion) if number is None else str(number)


def data_set_figures(answers: Sequence[Answer], ks: Sequence[int], num_failed_prompts: int) -> DataSetFigures:
    """Of one data file.

    Args:
        answers: prompt by prompt, each with the same number ≥ max(ks) of them.
        ks: each ≥ 1.
    """
    prompts = [list(group) for _, group in groupby(answers, key=lambda answer: answer.row)]
    correct = [[answer.correct for answer in prompt] for prompt in prompts]
    votes = [[answer.final_answer for answer in prompt] for prompt in prompts]
    accuracy = {}
    for k in sorted({1, *ks}):
        accuracy[f"pass@{k}"] = mean_with_interval([pass_at_k(len(each), sum(each), k) for each in correct])
        if k > 1 and any(vote is not None for prompt in votes for vote in prompt):
            each_majority = [majority_at_k(vote, each, k) for vote, each in zip(votes, correct, strict=True)]
            accuracy[f"maj@{k}"] = mean_with_interval(each_majority)
    rewards = [answer.reward for answer in answers if not math.isnan(answer.reward)]
    return DataSetFigures(
        data=answers[0].data,
        num_prompts=len(prompts),
        num_failed_prompts=num_failed_prompts,
        num_samples=len(prompts[0]),
        accuracy=accuracy,
        reward_mean=math.fsum(rewards) / len(rewards) if rewards else math.nan,
        num_unscored=len(answers) - len(rewards),
        length_mean=sum(answer.num_tokens for answer in answers) / len(answers),
        truncated_fraction=sum(answer.truncated for answer in answers) / len(answers),
    )


def to_json(figures: Sequence[DataSetFigures]) -> str:
    """For programs; NaN is null."""
    rows = [asdict(each) for each in figures]
    for row in rows:
        row["reward_mean"] = None if math.isnan(row["reward_mean"]) else row["reward_mean"]
    return json.dumps(rows, indent=1, ensure_ascii=False)


def to_table(figures: Sequence[DataSetFigures]) -> Table:
    """For people: a column a data file."""
    table = Table("", *(escape(each.data) for each in figures))
    for name in dict.fromkeys(name for each in figures for name in each.accuracy):
        table.add_row(name, *(_percent(each.accuracy.get(name)) for each in figures))
    for title, form in _LINES.items():
        table.add_row(title, *(form.format(each) for each in figures))
    return table


_LINES = {
    "mean reward": "{0.reward_mean:.3f}",
    "mean tokens": "{0.length_mean:.1f}",
    "cut at generator.max_tokens": "{0.truncated_fraction:.1%}",
    "prompts × completions": "{0.num_prompts} × {0.num_samples}",
    "prompts that failed": "{0.num_failed_prompts}",
    "completions without a reward": "{0.num_unscored}",
}


def _percent(estimate: Estimate | None) -> str:
    if estimate is None:
        return "–"
    return f"{estimate.value:.1%} ({100 * estimate.low:.1f} to {100 * estimate.high:.1f})"
