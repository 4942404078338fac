"""The table of the study of several turns."""

from __future__ import annotations

import io

from rich.console import Console

from bench.off_policy.multi_turn import TurnRun, table


def run(lag: int, seed: int, after: float) -> TurnRun:
    return TurnRun("calculator.yaml", 60, lag, seed, False, 0.25, after, 1.2, 1.8, 0.9 * lag, 120.0)


def test_a_lag_is_a_row_with_the_mean_the_extremes_and_the_ratio_to_the_first_lag_of_the_same_seed() -> None:
    out = io.StringIO()
    Console(file=out, width=200).print(table([run(0, 0, 0.8), run(4, 0, 0.4), run(0, 1, 0.5), run(4, 1, 0.5)]))
    (row,) = [line for line in out.getvalue().splitlines() if line.startswith("│ 4 ")]
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    assert cells[1:5] == ["3.6", "25.0% (25.0% – 25.0%)", "45.0% (40.0% – 50.0%)", "0.750 (0.500 – 1.000)"]
    assert cells[5:] == ["1.20 → 1.80", "2.0 (2.0 – 2.0)"]
