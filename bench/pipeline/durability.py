"""What durability costs a step: one configuration, launched with replay.durability=full and =off in turn.

    .venv/bin/python bench/pipeline/durability.py [--config FILE] [--steps 60] [--repeats 3] [key=value ...]

Which of the two goes first changes with each pair, so that a drift of the machine favours neither. Figures as in
overlap.py. "Held" is how long a batch that was ready waited to be durable: what the learner waits for the disk.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

from bench.pipeline.overlap import RunFigures
from bench.pipeline.throughput import QUICKSTART, Settings, run_once
from bench.support.rows import Measurement, write_rows

WARMUP_STEPS = 10


def pair(arguments: argparse.Namespace, number: int) -> dict[str, RunFigures]:
    """The figures of a run with and of one without."""
    figures: dict[str, RunFigures] = {}
    for durability in ("full", "off") if number % 2 == 0 else ("off", "full"):
        overrides = [*arguments.overrides, f"replay.durability={durability}"]
        settings = Settings(arguments.config, overrides, arguments.steps, WARMUP_STEPS, pin=True, num_generators=1)
        with tempfile.TemporaryDirectory(prefix="asyncrl-bench-", dir=arguments.folder) as folder:
            result = run_once(settings, "async", Path(folder))
        figures[durability] = result.figures
        print(
            f"| {number + 1} | {durability} | {cells(result.figures)} | {result.foreign_cores:.2f} |",
            flush=True,
        )
    return figures


def cells(figures: RunFigures) -> str:
    seconds = (figures.step_s, figures.step_median_s, figures.wait_s, figures.commit_s, figures.batch_held_s)
    return " | ".join(f"{1e3 * value:.1f}" for value in seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=QUICKSTART, help="with one generator")
    parser.add_argument("--steps", type=int, default=60, help="measured steps of each run (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="pairs of runs (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="for the runs' files (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE.jsonl", help="writes each figure as a row")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="any key of the configuration")
    arguments = parser.parse_args()
    arguments.folder.mkdir(exist_ok=True)
    print("| pair | durability | step, ms | median | waiting for a batch | commits | held | foreign cores |")
    print("|---|---|---|---|---|---|---|---|")
    pairs = [pair(arguments, number) for number in range(arguments.repeats)]
    for name in ("step_s", "step_median_s"):
        costs = [getattr(each["full"], name) / getattr(each["off"], name) - 1.0 for each in pairs]
        print(f"{name}: full over off {statistics.mean(costs):+.1%} ({min(costs):+.1%} – {max(costs):+.1%})")
    if arguments.out is not None:
        held = [each["full"].batch_held_s / each["full"].step_s for each in pairs]
        ratios = [each["full"].step_median_s / each["off"].step_median_s for each in pairs]
        rows = [Measurement("held_over_step", held, "less"), Measurement("full_over_off_median_step", ratios, "less")]
        write_rows(arguments.out, "durability", rows)


if __name__ == "__main__":
    main()
