"""What a selftest says: a table for people, selftest.json for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from asyncrl.config.schema import Config
from asyncrl.run.plain_text import plain
from asyncrl.selftest.result import Figures, Result

FILE_NAME = "selftest.json"
STYLES = {"passed": "green", "failed": "bold red", "skipped": "yellow"}


def write_json(results: Sequence[Result], config: Config, folder: Path) -> Path:
    """Everything that was found, and what was tested."""
    file = folder / FILE_NAME
    found = {
        "asyncrl": version("asyncrl"),
        "passed": passed(results),
        "model": config.model.path,
        "engine": config.generator.engine,
        "results": [asdict(result) for result in results],
    }
    file.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    return file


def passed(results: Sequence[Result]) -> bool:
    return all(result.status != "failed" for result in results)


def print_report(results: Sequence[Result], console: Console) -> None:
    table = Table(title="selftest", title_justify="left", title_style="bold")
    table.add_column("check")
    table.add_column("result")
    table.add_column("s", justify="right")
    table.add_column("figures", overflow="fold")
    for result in results:
        shown = result.reason if result.status == "skipped" else _shown(result.figures)
        table.add_row(
            result.check, Text(result.status, STYLES[result.status]), f"{result.seconds:.1f}", Text(plain(shown))
        )
    console.print(table)
    for result in results:
        if result.status == "failed":
            console.print(f"✗ {result.check}: {plain(result.reason)}", style="red", highlight=False, markup=False)
            console.print(f"  → {result.advice}", highlight=False, markup=False)


def _shown(figures: Figures) -> str:
    return "; ".join(f"{name} {_number(value)}" for name, value in figures.items())


def _number(value: float | int | str) -> str:
    return f"{value:.3g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value
