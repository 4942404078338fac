from __future__ import annotations

import json
from pathlib import Path

import pytest

from asyncrl.api.run import Run
from asyncrl.config.load import load
from asyncrl.errors import DataError
from asyncrl.ledger.records import PromptRecord
from asyncrl.ledger.store import LedgerStore, Transaction
from asyncrl.run.directory import create, ledger_file
from asyncrl.run.metrics import MetricsWriter


@pytest.fixture
def run(tmp_path: Path) -> Run:
    config = load(None, ["model.path=none", "data.train=none", f"run.dir={tmp_path}", "run.name=one", "run.steps=7"])
    return Run(create(config, "unused"))


def test_a_folder_without_a_configuration_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no run directory"):
        Run(tmp_path)


def test_a_run_gives_its_configuration_and_has_empty_tables_before_its_first_step(run: Run) -> None:
    assert run.config.run.steps == 7
    assert run.metrics().num_rows == 0
    assert run.checkpoints().to_pylist() == []
    with pytest.raises(DataError, match="has no ledger"):
        run.prompts()


def test_metrics_have_a_column_for_every_figure_and_null_where_a_step_has_none(run: Run) -> None:
    writer = MetricsWriter(run.directory)
    writer.write(0, {"eval/accuracy": 0.5})
    writer.write(1, {"reward/mean": 0.25, "staleness/histogram": [3, 4]})
    writer.close()
    with (run.directory / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "rewa')  # being written
    assert run.metrics().to_pylist() == [
        {"step": 0, "eval/accuracy": 0.5, "reward/mean": None, "staleness/histogram": None},
        {"step": 1, "eval/accuracy": None, "reward/mean": 0.25, "staleness/histogram": [3, 4]},
    ]


def test_prompts_are_the_ledgers_rows_by_admission_index(run: Run) -> None:
    store = LedgerStore(ledger_file(run.directory), durability="off")
    records = [PromptRecord(1, "quarantined", num_failures=3, reason="no reward"), PromptRecord(0, "batched", step=0)]
    store.write(Transaction(records, {}, {}, None))
    table = run.prompts()  # while the store is open, as in a live run
    store.close()
    columns = table.select(["idx", "state", "step", "reason", "num_failures"]).to_pylist()
    assert [tuple(row.values()) for row in columns] == [
        (0, "batched", 0, None, 0),
        (1, "quarantined", None, "no reward", 3),
    ]


def test_checkpoints_are_listed_by_step(run: Run) -> None:
    for step in (1_000_000, 20):
        folder = run.directory / "checkpoints" / f"step_{step:06d}"
        folder.mkdir(parents=True)
        (folder / "trainer.json").write_text(json.dumps({"format": 1, "step": step, "update": 2 * step}))
    assert [(row["step"], row["update"]) for row in run.checkpoints().to_pylist()] == [(20, 40), (1_000_000, 2_000_000)]
