"""One row a step, made of what the roles report: the learner's row, and the latest figures of generators and replay.

A step's row is written when the next one comes or the run ends, so that an evaluation that ends in between is in it.
Step 0 is the policy before training.
"""

from __future__ import annotations

from collections.abc import Mapping

from asyncrl.run.metrics import MetricsWriter
from asyncrl.transport.control_server import Report, RoleState
from asyncrl.transport.messages.base import MetricValue
from asyncrl.transport.messages.supervision import EvalRow, Note, StepRow
from asyncrl.watch.console import LiveView
from asyncrl.watch.lag_table import lag_table
from asyncrl.watch.split_adviser import SplitAdviser

LAG_TABLE_EVERY = 10
"""Steps between two tables of diagnostics by lag. The last step has one too."""


class Recorder:
    """Takes reports, writes rows, shows them."""

    def __init__(self, writer: MetricsWriter, view: LiveView, adviser: SplitAdviser, first_step: int) -> None:
        self._writer = writer
        self._view = view
        self._adviser = adviser
        self._step = first_step
        self.num_rows = 0
        self._row: dict[str, MetricValue] = {}

    def record(self, sender: str, report: Report, roles: Mapping[str, RoleState]) -> None:
        """One report, in the order of arrival."""
        match report:
            case StepRow() if report.step <= self._step:
                pass  # a learner that was started again makes it a second time
            case StepRow():
                self._write()
                self._step = report.step
                self.num_rows += 1
                self._row = {**report.metrics, **_figures(roles)}
                self._view.step({"step": report.step, **self._row})
                self._adviser.look(self.num_rows - 1)
            case EvalRow():
                self._row |= report.metrics
                self._view.evaluation(report.version, report.metrics)
            case Note():
                self._view.event(f"{sender}: {report.text}")

    def close(self) -> None:
        """Writes the last row; the writer stays open."""
        self._write_lag_table()
        self._write()

    def _write(self) -> None:
        if self._step % LAG_TABLE_EVERY == 0:
            self._write_lag_table()
        if self._row:
            self._writer.write(self._step, self._row)
            self._row = {}

    def _write_lag_table(self) -> None:
        table = lag_table(self._row)
        if table is not None:
            self._writer.write_table(self._step, "lag/table", table)


def _figures(roles: Mapping[str, RoleState]) -> dict[str, MetricValue]:
    """Generators together, and replay's own."""
    generators = [state.metrics for name, state in roles.items() if name.startswith("generator-") and state.metrics]
    figures: dict[str, MetricValue] = {"generator/num_serving": float(len(generators))}
    if generators:
        figures["throughput/generator_tokens_per_s"] = sum(metrics["tokens_per_s"] for metrics in generators)
        figures["idle/generator"] = sum(metrics["idle"] for metrics in generators) / len(generators)
        totals = [key for key in generators[0] if key.startswith("generator/")]
        figures |= {key: sum(metrics[key] for metrics in generators) for key in totals}
    queue = {key: value for key, value in roles["replay"].metrics.items() if key != "queue/depth"}
    return {**figures, **queue}
