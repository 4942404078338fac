"""The live view of a run: a table in place on a terminal, one aligned line a step anywhere else.

Consumes phases and events from the launcher and the rows that also go to `metrics.jsonl`; waits for nothing.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from datetime import timedelta

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

from asyncrl.run.plain_text import plain
from asyncrl.run.trackers.base import MetricValue

ETA_STEPS = 10
"""The time left is judged by this many last steps: the first ones are slow, and lengths drift."""

BLANK = "–"


class LiveView:
    """Shows how a run comes up and how it goes. Not for several threads at once."""

    def __init__(self, console: Console, num_steps: int) -> None:
        self._console = console
        self._num_steps = num_steps
        self._phases: dict[str, str] = {}
        self._row: Mapping[str, MetricValue] = {}
        self._last_eval: tuple[int, float] | None = None
        self._step_times_s: deque[float] = deque(maxlen=ETA_STEPS)
        self._live = Live(console=console, refresh_per_second=4) if console.is_terminal else None

    def start(self) -> None:
        if self._live is not None:
            self._live.start()

    def stop(self) -> None:
        """Leave the last view on the screen and give the terminal back. May be called twice."""
        if self._live is not None:
            self._live.stop()

    def phase(self, role: str, text: str) -> None:
        """What a role is doing while it comes up or goes down, such as `loading the model`."""
        self._phases[role] = text
        if self._live is None or self._row:
            self.event(f"{role}: {text}")
        else:
            self._refresh()

    def event(self, text: str) -> None:
        """One line that stays, such as a checkpoint that was written."""
        self._console.print(escape(plain(text)), highlight=False, soft_wrap=True)

    def evaluation(self, version: int, metrics: Mapping[str, MetricValue]) -> None:
        """A finished evaluation; it stays in view until the next."""
        accuracy = _number(metrics, "eval/accuracy")
        if accuracy is not None:
            self._last_eval = (version, accuracy)
            self.event(f"evaluation of version {version}: accuracy {accuracy:.1%}")

    def step(self, row: Mapping[str, MetricValue]) -> None:
        """A finished step. Keys that a row lacks are shown as blank; the last evaluation stays in view."""
        self._row = row
        step_time_s = _number(row, "time/step_s")
        if step_time_s is not None:
            self._step_times_s.append(step_time_s)
        if self._live is None:
            self._console.print(self._line(), highlight=False, markup=False, soft_wrap=True)
        else:
            self._refresh()

    def _refresh(self) -> None:
        assert self._live is not None
        self._live.update(self._progress() if self._row else self._start_up(), refresh=True)

    def _start_up(self) -> RenderableType:
        table = Table.grid(padding=(0, 2))
        for role, text in self._phases.items():
            table.add_row(f"[bold]{escape(role)}[/bold]", escape(plain(text)))
        return table

    def _progress(self) -> RenderableType:
        row, step = self._row, int(_number(self._row, "step") or 0)
        head = Table.grid(padding=(0, 2))
        head.add_row(
            f"[bold]step {step}/{self._num_steps}[/bold]",
            ProgressBar(total=self._num_steps, completed=step, width=24),
            f"{_text(row, 'time/step_s', '.2f')} s a step",
            f"{self._eta()} left",
        )
        body = Table.grid(padding=(0, 2))
        for cells in (
            ("reward", _text(row, "reward/mean", ".3f"), "loss", _text(row, "loss/total", ".4f")),
            (
                "accuracy, train",
                _text(row, "reward/accuracy", ".1%"),
                "KL(μ‖π)",
                _text(row, "policy/kl_behaviour", ".2g"),
            ),
            ("accuracy, eval", self._eval_text(), "publish", f"{_text(row, 'time/publish_s', '.2f')} s"),
            (
                "staleness, mean",
                _text(row, "staleness/mean", ".2f"),
                "queue",
                f"{_text(row, 'queue/depth', '.0f')} groups",
            ),
            ("staleness, max", self._staleness_text(), "waiting", self._who_waits()),
            ("generators", _side(row, "generator"), "learners", _side(row, "learner")),
        ):
            body.add_row(*(f"[dim]{cell}[/dim]" if index % 2 == 0 else cell for index, cell in enumerate(cells)))
        return Group(head, body)

    def _line(self) -> str:
        row = self._row
        step = f"{_text(row, 'step', '.0f')}/{self._num_steps}"
        width = 2 * len(str(self._num_steps)) + 1
        return "  ".join(
            (
                f"step {step:>{width}}",
                f"reward {_text(row, 'reward/mean', '.3f'):>6}",
                f"acc {_text(row, 'reward/accuracy', '.1%'):>6}",
                f"loss {_text(row, 'loss/total', '.4f'):>8}",
                f"kl {_text(row, 'policy/kl_behaviour', '.1e'):>8}",
                f"lag {_text(row, 'staleness/mean', '.1f'):>4} max {_text(row, 'staleness/max', '.0f'):>2}"
                f" η {_text(row, 'staleness/eta', '.0f'):>2}",
                f"queue {_text(row, 'queue/depth', '.0f'):>4}",
                f"gen {_side(row, 'generator'):>22}",
                f"learn {_side(row, 'learner'):>22}",
                f"{_text(row, 'time/step_s', '.2f'):>6} s",
                f"{self._eta()} left",
            )
        )

    def _eta(self) -> str:
        if not self._step_times_s:
            return BLANK
        steps_left = max(0, self._num_steps - int(_number(self._row, "step") or 0))
        seconds_left = steps_left * sum(self._step_times_s) / len(self._step_times_s)
        return str(timedelta(seconds=round(seconds_left)))

    def _eval_text(self) -> str:
        if self._last_eval is None:
            return BLANK
        step, accuracy = self._last_eval
        return f"{accuracy:.1%} at step {step}"

    def _staleness_text(self) -> str:
        return f"{_text(self._row, 'staleness/max', '.0f')} (η {_text(self._row, 'staleness/eta', '.0f')})"

    def _who_waits(self) -> str:
        generator, learner = _number(self._row, "idle/generator"), _number(self._row, "idle/learner")
        if generator is None or learner is None:
            return BLANK
        return "mostly generators" if generator > learner else "mostly learners"


def _side(row: Mapping[str, MetricValue], role: str) -> str:
    speed, idle = _text(row, f"throughput/{role}_tokens_per_s", ",.0f"), _text(row, f"idle/{role}", ".0%")
    return f"{speed} tok/s, {idle} idle"


def _text(row: Mapping[str, MetricValue], key: str, form: str) -> str:
    number = _number(row, key)
    return BLANK if number is None else format(number, form)


def _number(row: Mapping[str, MetricValue], key: str) -> float | None:
    value = row.get(key)
    return value if isinstance(value, int | float) and math.isfinite(value) else None
