"""The books of a run that was stopped: the ledger against what the learner wrote of each step."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from pathlib import Path

from asyncrl.run.metrics import read_rows
from asyncrl.types import prompts_checksum


def books(run_dir: Path) -> dict[str, float]:
    """What was done, and what must be zero."""
    rows = read_rows(run_dir)
    steps = [int(row["step"]) for row in rows if row["step"] > 0]
    ledger = sqlite3.connect(run_dir / "ledger.sqlite")
    states = dict(ledger.execute("SELECT state, count(*) FROM prompts GROUP BY state"))
    (drawn_to,) = ledger.execute("SELECT value FROM counters WHERE name = 'drawn_to'").fetchone()
    batches: dict[int, list[int]] = defaultdict(list)
    for index, step in ledger.execute("SELECT idx, step FROM prompts WHERE state = 'trained' ORDER BY idx"):
        batches[step].append(index)
    ledger.close()
    differing = [row for row in rows if row["step"] > 0 and row["batch/prompts_crc32"] != _checksum(batches, row)]
    return {
        "steps": len(steps),
        "prompts trained": states.get("trained", 0),
        "prompts in hand": sum(states.get(state, 0) for state in ("leased", "waiting", "queued")),
        "prompts quarantined": states.get("quarantined", 0),
        "steps missing or double": len(set(range(1, len(steps) + 1)) ^ set(steps)) + len(steps) - len(set(steps)),
        "prompts lost": drawn_to - sum(states.values()),
        "steps whose prompts are others than the ledger says": len(differing),
        "prompts trained and not in a checkpoint": states.get("batched", 0),
        "tokens over the bound": sum(row.get("staleness/violations", 0) for row in rows),
    }


def _checksum(batches: dict[int, list[int]], row: dict[str, float]) -> float:
    return float(prompts_checksum(batches[int(row["step"]) - 1]))
