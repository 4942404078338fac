"""The controller of η under disturbance: does the effective sample size come back to its target?

    .venv/bin/python bench/off_policy/eta_controller.py [--out FILE.json] [--plot FILE.svg]

One run of the lag study's kind (lagged.py, token TIS), in four phases: as it is; the learning rate × 3; the old rate
again; at the start of the last, η put at its maximum by hand. Beside it the same run with η fixed at the maximum.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from asyncrl.ledger.staleness_controller import StalenessController
from bench.off_policy.off_policy import Job, start_ranks, tiny_model

ESS_TARGET = 0.95
MAX_STALENESS = 32
PHASE_STEPS = 150
DISTURBED_LR_FACTOR = 3.0
PHASES = ("undisturbed", "learning rate × 3", "undisturbed again", "η put at its maximum")


class Point(NamedTuple):
    """One step."""

    eta: int
    effective_sample_size: float
    reward: float


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The controller of η under disturbance.")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--plot", type=Path, help="file for the plot, .svg or .png")
    options = parser.parse_args(arguments)
    start_ranks()
    with tempfile.TemporaryDirectory() as models:
        curves = {name: _run(Path(models), controlled=name == "controlled") for name in ("controlled", "fixed")}
    if options.out is not None:
        options.out.write_text(json.dumps(curves) + "\n")
    if options.plot is not None:
        plot(curves, options.plot)
    Console().print(table(curves))
    return 0


def _run(models: Path, controlled: bool) -> list[Point]:
    from torch.distributed.device_mesh import init_device_mesh

    from asyncrl.config.load import load
    from bench.off_policy.lagged import LaggedRun

    job = Job("token TIS", MAX_STALENESS, seed=0, num_steps=PHASE_STEPS * len(PHASES), lr=2e-4, models=models)
    config = load("configs/quickstart.yaml", [f"model.path={tiny_model(job)}", *job.overrides])
    controller = StalenessController(ess_target=ESS_TARGET, min_staleness=0, max_staleness=MAX_STALENESS)
    run = LaggedRun(config, init_device_mesh("cpu", (1,)), job.num_steps)
    points = []
    for step in range(job.num_steps):
        phase = step // PHASE_STEPS
        config.learner.lr = job.lr * (DISTURBED_LR_FACTOR if phase == 1 else 1.0)
        if controlled:
            if step == 3 * PHASE_STEPS:
                controller.eta = MAX_STALENESS
            run.eta = controller.eta
        metrics = run.step()
        size, reward = metrics["policy/effective_sample_size"], metrics["reward/mean"]
        assert isinstance(size, float)
        assert isinstance(reward, float)
        controller.observe(size)
        points.append(Point(run.eta, size, reward))
    return points


def table(curves: dict[str, list[Point]]) -> Table:
    """A row a phase: its second half, when the controller has had time."""
    result = Table("phase", title=f"target {ESS_TARGET}: medians of each phase's second half", title_justify="left")
    for name in curves:
        result.add_column(f"{name}: ESS", justify="right")
        result.add_column("η", justify="right")
    for phase, name in enumerate(PHASES):
        cells = []
        for points in curves.values():
            half = points[phase * PHASE_STEPS + PHASE_STEPS // 2 : (phase + 1) * PHASE_STEPS]
            cells.append(f"{statistics.median(point.effective_sample_size for point in half):.3f}")
            cells.append(f"{statistics.median(point.eta for point in half):g}")
        result.add_row(name, *cells)
    return result


def plot(curves: dict[str, list[Point]], path: Path) -> None:
    """Effective sample size above, η below, the phases marked."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (sizes, etas) = pyplot.subplots(2, sharex=True, figsize=(8, 5))
    for name, points in curves.items():
        sizes.plot([point.effective_sample_size for point in points], label=f"η {name}", linewidth=0.8)
        etas.plot([point.eta for point in points], label=f"η {name}")
    sizes.axhline(ESS_TARGET, color="grey", linestyle=":", label="target")
    sizes.set(ylabel="effective sample size", ylim=(0.4, 1.02))
    etas.set(ylabel="η (versions)", xlabel="step")
    for phase, name in enumerate(PHASES):
        for axes in (sizes, etas):
            axes.axvline(phase * PHASE_STEPS, color="grey", linewidth=0.5)
        sizes.text(phase * PHASE_STEPS + 4, 0.42, name, fontsize="x-small")
    sizes.legend(fontsize="small", loc="lower right")
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    sys.exit(main())
