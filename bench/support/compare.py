"""Two files of rows, figure by figure: what became worse?"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.support.rows import Row, read_rows


@dataclass(frozen=True)
class Comparison:
    """One figure before and now."""

    old: Row
    new: Row

    @property
    def ratio(self) -> float:
        """New ÷ old, of the medians."""
        return self.new.median / self.old.median if self.old.median else float(self.new.median == 0) or float("inf")

    def is_worse(self, tolerance: float) -> bool:
        """Whether even its best value is worse than the worst old one, and the medians differ by more than `tolerance`.

        With one value each, the tolerance alone decides.
        """
        if self.new.better == "more":
            return max(self.new.values) < min(self.old.values) and self.ratio < 1.0 - tolerance
        return min(self.new.values) > max(self.old.values) and self.ratio > 1.0 + tolerance


def comparisons(old: list[Row], new: list[Row]) -> list[Comparison]:
    """Of the figures that both have."""
    before = {(row.benchmark, row.figure): row for row in old}
    return [Comparison(before[key], row) for row in new if (key := (row.benchmark, row.figure)) in before]


def compare(options: list[str]) -> int:
    """The command. Exit code 1: a figure became worse; 2: the files cannot be compared."""
    parser = argparse.ArgumentParser(prog="python -m bench compare", description=__doc__)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--tolerance", type=float, default=0.1, help="share by which medians may differ (default: 0.1)")
    arguments = parser.parse_args(options)
    try:
        pairs = comparisons(read_rows(arguments.old), read_rows(arguments.new))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not pairs:
        print(f"error: {arguments.old} and {arguments.new} have no figure in common", file=sys.stderr)
        return 2
    return _show(pairs, arguments.tolerance)


def _show(pairs: list[Comparison], tolerance: float) -> int:
    console, worse = Console(), [pair for pair in pairs if pair.is_worse(tolerance)]
    old, new = pairs[0].old, pairs[0].new
    console.print(f"old: {old.commit}, {old.machine['cpu']}, load {old.machine['load']}")
    console.print(f"new: {new.commit}, {new.machine['cpu']}, load {new.machine['load']}")
    if old.machine["cpu"] != new.machine["cpu"]:
        console.print("these are two kinds of machine: only ratios can be compared")
    table = Table("benchmark", "figure", "old", "new", "new ÷ old", "")
    for pair in pairs:
        cells = (f"{pair.old.median:,.4g}", f"{pair.new.median:,.4g}", f"{pair.ratio:.2f}")
        table.add_row(pair.new.benchmark, pair.new.figure, *cells, "worse" if pair in worse else "")
    console.print(table)
    console.print(f"{len(worse)} of {len(pairs)} figures became worse by more than {tolerance:.0%}")
    return 1 if worse else 0
