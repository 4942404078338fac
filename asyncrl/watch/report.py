"""`asyncrl report`: what became of a run's prompts, how stale its tokens were, how long its steps took; live or ended.

Reads the ledger and metrics.jsonl, and changes nothing.
"""

from __future__ import annotations

import json
import sqlite3
import statistics
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from asyncrl.errors import DataError
from asyncrl.run.directory import ledger_file
from asyncrl.run.metrics import FILE_NAME, Row, read_rows
from asyncrl.run.plain_text import plain
from asyncrl.run.trainer_state import latest


@dataclass(frozen=True)
class Quarantined:
    """A prompt that was given up."""

    index: int
    reason: str


@dataclass(frozen=True)
class Report:
    """A run in figures; `--json` prints it."""

    run: str
    num_steps: int
    checkpoint: str | None
    """The latest."""
    num_prompts_by_state: dict[str, int]
    quarantined: list[Quarantined]
    num_kept_groups: int
    """Not in a checkpoint yet."""
    num_replay_processes: int
    num_tokens_by_lag: list[int]
    num_tokens_over_bound: int
    reward_first: float | None
    """Mean of the first tenth of the steps."""
    reward_last: float | None
    accuracy_first: float | None
    """Of the first evaluation."""
    accuracy_last: float | None
    step_median_s: float | None
    learner_idle: float | None
    """Mean share of a step."""
    generator_idle: float | None


def read_report(run_dir: Path) -> Report:
    """Reads the report of a run, live or ended.

    Raises:
        DataError: no run directory, or one without a ledger or metrics.
    """
    ledger, metrics = ledger_file(run_dir), run_dir / FILE_NAME
    for file in (ledger, metrics):
        if not file.is_file():
            raise DataError(f"{run_dir} is no run with something to report: it has no {file.name}")
    rows = read_rows(run_dir)
    steps = [row for row in rows if row["step"] > 0]
    tenth = max(1, len(steps) // 10)
    accuracies = _values(rows, "eval/accuracy")
    checkpoint = latest(run_dir)
    lags = zip_longest(*(row.get("staleness/histogram", []) for row in steps), fillvalue=0)
    durations_s = _values(steps, "time/step_s")
    with closing(sqlite3.connect(ledger)) as db:
        states = dict(db.execute("SELECT state, count(*) FROM prompts GROUP BY state"))
        given_up = db.execute("SELECT idx, reason FROM prompts WHERE state = 'quarantined' ORDER BY idx").fetchall()
        (num_kept,) = db.execute("SELECT count(*) FROM groups").fetchone()
        (num_sessions,) = db.execute("SELECT count(*) FROM sessions").fetchone()
    return Report(
        run=run_dir.name,
        num_steps=len(steps),
        checkpoint=None if checkpoint is None else checkpoint.name,
        num_prompts_by_state=states,
        quarantined=[Quarantined(*row) for row in given_up],
        num_kept_groups=num_kept,
        num_replay_processes=num_sessions,
        num_tokens_by_lag=[int(sum(counts)) for counts in lags],
        num_tokens_over_bound=int(sum(_values(steps, "staleness/violations"))),
        reward_first=_mean(_values(steps[:tenth], "reward/mean")),
        reward_last=_mean(_values(steps[-tenth:], "reward/mean")),
        accuracy_first=accuracies[0] if accuracies else None,
        accuracy_last=accuracies[-1] if accuracies else None,
        step_median_s=statistics.median(durations_s) if durations_s else None,
        learner_idle=_mean(_values(steps, "idle/learner")),
        generator_idle=_mean(_values(steps, "idle/generator")),
    )


def to_json(report: Report, split: Mapping[str, Any]) -> str:
    """With what is said of its split, `simulate/advice.py`."""
    return json.dumps({**asdict(report), "split": split}, indent=1, ensure_ascii=False)


def print_report(report: Report, note: str | None, console: Console) -> None:
    """Prints the report as tables, for people, and a note below them."""
    table = Table(title=report.run, title_justify="left", title_style="bold", show_header=False)
    for name, value in _lines(report):
        table.add_row(name, value)
    console.print(table)
    for prompt in report.quarantined:
        reason = plain(prompt.reason)
        console.print(f"• prompt {prompt.index} was quarantined: {reason}", highlight=False, markup=False)
    if note is not None:
        console.print(f"• {plain(note)}", highlight=False, markup=False, soft_wrap=True)


def _lines(report: Report) -> list[tuple[str, str]]:
    states = report.num_prompts_by_state
    num_tokens = sum(report.num_tokens_by_lag)
    lags = [f"{lag}: {_percent(count / num_tokens)}" for lag, count in enumerate(report.num_tokens_by_lag) if count]
    return [
        ("steps", f"{report.num_steps}, latest checkpoint {report.checkpoint or 'none'}"),
        ("prompts", ", ".join(f"{states[state]:,} {state}" for state in sorted(states))),
        ("groups that no checkpoint has", f"{report.num_kept_groups:,}"),
        ("replay processes so far", f"{report.num_replay_processes}"),
        ("tokens by lag", ", ".join(lags) or "none"),
        ("tokens over the staleness bound", f"{report.num_tokens_over_bound}"),
        ("reward, first and last tenth", f"{_number(report.reward_first)} → {_number(report.reward_last)}"),
        ("accuracy, first and last", f"{_percent(report.accuracy_first)} → {_percent(report.accuracy_last)}"),
        ("step, median", "–" if report.step_median_s is None else f"{report.step_median_s:.2f} s"),
        ("idle", f"learner {_percent(report.learner_idle)}, generators {_percent(report.generator_idle)}"),
    ]


def _values(rows: Sequence[Row], key: str) -> list[float]:
    return [row[key] for row in rows if row.get(key) is not None]


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"
