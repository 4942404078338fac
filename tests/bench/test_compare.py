"""Rows of benchmarks: written, read and compared."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.support.compare import compare
from bench.support.rows import Better, Measurement, read_rows, write_rows


def rows(file: Path, values: list[float], better: Better = "less", figure: str = "step_s") -> Path:
    write_rows(file, "throughput", [Measurement(figure, values, better)])
    return file


def test_a_row_holds_all_that_is_needed_to_repeat_it(tmp_path: Path) -> None:
    (row,) = read_rows(rows(tmp_path / "rows.jsonl", [1.0, 3.0, 2.0]))
    assert (row.benchmark, row.figure, row.median, row.better) == ("throughput", "step_s", 2.0, "less")
    assert row.commit
    assert row.command.startswith("python ")
    assert {"num_cores", "cpu", "load", "torch", "ray"} <= row.machine.keys()


@pytest.mark.parametrize(
    ("better", "old", "new", "exit_code"),
    [
        ("less", [1.0, 1.1], [1.3, 1.4], 1),
        ("less", [1.0, 1.1], [0.5, 0.6], 0),
        ("less", [1.0, 1.5], [1.3, 1.9], 0),  # the spreads overlap
        ("less", [1.0], [1.05], 0),  # within the tolerance
        ("more", [1.0, 1.1], [0.7, 0.8], 1),
        ("more", [1.0, 1.1], [1.3, 1.4], 0),
        ("less", [0.0], [0.5], 1),
    ],
)
def test_a_figure_is_worse_when_its_spread_lies_apart_and_its_median_moved_by_more_than_the_tolerance(
    tmp_path: Path, better: Better, old: list[float], new: list[float], exit_code: int
) -> None:
    files = rows(tmp_path / "old.jsonl", old, better), rows(tmp_path / "new.jsonl", new, better)
    assert compare([str(file) for file in files]) == exit_code


def test_files_that_cannot_be_compared_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, other = rows(tmp_path / "good.jsonl", [1.0]), rows(tmp_path / "other.jsonl", [1.0], figure="idle")
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"figure": "step_s"}\n')
    for file, message in (
        (other, "no figure in common"),
        (broken, "broken.jsonl, line 1: not a row of a benchmark"),
        (tmp_path / "missing.jsonl", "No such file"),
    ):
        assert compare([str(good), str(file)]) == 2
        assert message in capsys.readouterr().err
