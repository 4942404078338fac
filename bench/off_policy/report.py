"""The lag study's table and plot: final reward at a lag ÷ that of the on-policy run with the same seed."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.table import Table

from bench.support.rows import Measurement

NUM_FINAL = 3
"""Evaluations whose mean is the final reward."""
STUDENT_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""97.5 % quantile for 1, 2, … degrees of freedom."""


@dataclass(frozen=True)
class Run:
    """One line of the results."""

    method: str
    lag: int
    seed: int
    num_steps: int
    lr: float
    rewards: list[float]
    """Expected held-out reward before the first step and after every 25."""
    effective_sample_size: float
    """Mean over the steps."""

    @property
    def final(self) -> float:
        return statistics.mean(self.rewards[-NUM_FINAL:])


@dataclass(frozen=True)
class Cell:
    """A method at a lag."""

    ratios: list[float]
    """One a seed."""

    @property
    def mean(self) -> float:
        return statistics.mean(self.ratios)

    @property
    def half_width(self) -> float:
        """Of the 95 % interval of the mean (Student's t over seeds); 0 with a single seed."""
        num = len(self.ratios)
        if num < 2:
            return 0.0
        return float(STUDENT_T[min(num - 2, len(STUDENT_T) - 1)] * statistics.stdev(self.ratios) / num**0.5)


def cells(runs: list[Run]) -> dict[str, dict[int, Cell]]:
    """method → lag → the seeds' ratios; seeds without an on-policy run are left out."""
    on_policy = {run.seed: run.final for run in runs if run.lag == 0}
    ratios: dict[str, dict[int, list[float]]] = {}
    for run in runs:
        if run.lag > 0 and run.seed in on_policy:
            ratios.setdefault(run.method, {}).setdefault(run.lag, []).append(run.final / on_policy[run.seed])
    return {method: {lag: Cell(by_lag[lag]) for lag in sorted(by_lag)} for method, by_lag in ratios.items()}


def measurements(runs: list[Run]) -> list[Measurement]:
    """A figure for each cell, with the seeds' ratios."""
    return [
        Measurement(f"{method}, lag {lag}: final_over_on_policy", cell.ratios, "more")
        for method, by_lag in cells(runs).items()
        for lag, cell in by_lag.items()
    ]


def table(runs: list[Run]) -> Table:
    """A row a method, a column a lag; as Markdown."""
    by_method = cells(runs)
    lags = sorted({lag for by_lag in by_method.values() for lag in by_lag})
    on_policy = [run.final for run in runs if run.lag == 0]
    title = f"final reward ÷ on-policy ({statistics.mean(on_policy):.3f} over {len(on_policy)} seeds)"
    header = ("correction", *(f"lag {lag}" for lag in lags))
    result = Table(*header, title=title, title_justify="left", box=box.MARKDOWN)
    for method, by_lag in by_method.items():
        result.add_row(method, *(_text(by_lag.get(lag)) for lag in lags))
    return result


def _text(cell: Cell | None) -> str:
    return "" if cell is None else f"{cell.mean:.3f} ± {cell.half_width:.3f}"


def plot(runs: list[Run], path: Path) -> None:
    """The table as curves with intervals; lags on a logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    for position, (method, by_lag) in enumerate(cells(runs).items()):
        shift = 1 + 0.015 * position  # so that the intervals stand beside each other
        points = list(_points(by_lag))
        lags, means, widths = zip(*points, strict=True)
        axes.errorbar([lag * shift for lag in lags], means, yerr=widths, label=method, marker="o", capsize=2)
    axes.axhline(1.0, color="grey", linestyle=":")
    axes.set(xscale="log", xlabel="lag (versions)", ylabel="final reward ÷ on-policy")
    axes.set_xticks([1, 4, 8, 16, 64], ["1", "4", "8", "16", "64"])
    axes.legend(fontsize="small", ncols=2)
    figure.tight_layout()
    figure.savefig(path)


def _points(by_lag: dict[int, Cell]) -> Iterator[tuple[int, float, float]]:
    for lag, cell in by_lag.items():
        yield lag, cell.mean, cell.half_width
