import json
import math
from pathlib import Path

import pytest

from asyncrl import cli
from asyncrl.ledger.records import PromptRecord
from asyncrl.ledger.store import LedgerStore, StoredGroup
from asyncrl.run.metrics import MetricsWriter
from asyncrl.transport.wire import group_to_wire
from asyncrl.watch.report import Quarantined, read_report
from tests.support.wire import make_group

HOSTILE = "\x1b[2J\x1b]0;owned\x07\x9b31m"
"""Clears the screen, sets the window's title, turns red."""


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Killed in its third step: its last row is half written, its ledger was not closed."""
    writer = MetricsWriter(tmp_path)
    writer.write(0, {"eval/accuracy": 0.25})
    for step in (1, 2):
        figures = {
            "reward/mean": 0.5 * step,
            "time/step_s": float(step),
            "idle/learner": math.nan,
            "staleness/violations": 0.0,
        }
        writer.write(step, {**figures, "staleness/histogram": [6.0] + [1.0] * step, "eval/accuracy": 0.5 * step})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "rew')
    store = LedgerStore(tmp_path / "ledger.sqlite", "full")
    store.begin_session(began_anew=True)
    header, frames = group_to_wire(make_group(1))
    store.put(1, StoredGroup(header, [bytes(frame) for frame in frames]))
    records = [
        PromptRecord(0, "trained", step=0),
        PromptRecord(1, "queued", place=0),
        PromptRecord(2, "quarantined", reason="it [hangs]"),
        PromptRecord(3, "quarantined", reason=HOSTILE),
    ]
    store.commit(records, {})
    return tmp_path


def test_a_report_counts_what_ledger_and_metrics_have(run_dir):
    report = read_report(run_dir)
    assert report.num_prompts_by_state == {"trained": 1, "queued": 1, "quarantined": 2}
    assert report.quarantined == [Quarantined(2, "it [hangs]"), Quarantined(3, HOSTILE)]
    assert (report.num_steps, report.num_kept_groups, report.num_replay_processes) == (2, 1, 1)
    assert report.num_tokens_by_lag == [12, 2, 1]
    assert (report.reward_first, report.reward_last, report.step_median_s) == (0.5, 1.0, 1.5)
    assert (report.accuracy_first, report.accuracy_last, report.learner_idle) == (0.25, 1.0, None)


def test_the_report_is_printed_for_people_and_as_json(run_dir, capsys):
    assert cli.main(["report", str(run_dir)]) == 0
    printed = capsys.readouterr().out
    assert "prompt 2 was quarantined: it [hangs]" in printed
    assert "25.0% → 100.0%" in printed
    assert not set(HOSTILE) & set(printed) & {"\x1b", "\x07", "\x9b"}
    assert r"\x1b]0;owned\x07" in printed
    assert cli.main(["report", str(run_dir), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["num_tokens_by_lag"] == [12, 2, 1]
    assert printed["split"]["why_none"] == "the run has no hardware.json, which its launcher writes"


def test_a_folder_that_is_no_run_is_refused(tmp_path, capsys):
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "is no run with something to report: it has no ledger.sqlite" in capsys.readouterr().err
