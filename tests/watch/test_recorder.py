import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from asyncrl.run.metrics import MetricsWriter
from asyncrl.run.trackers.tensorboard import TensorBoard
from asyncrl.transport.control_server import RoleState
from asyncrl.transport.messages.supervision import EvalRow, Note, StepRow
from asyncrl.watch.console import LiveView
from asyncrl.watch.recorder import Recorder
from asyncrl.watch.split_adviser import SplitAdviser

ROLES = {
    "generator-0": RoleState(metrics={"tokens_per_s": 100.0, "idle": 0.5, "generator/tokens_total": 900.0}),
    "generator-1": RoleState(metrics={"tokens_per_s": 50.0, "idle": 0.1, "generator/tokens_total": 400.0}),
    "generator-2": RoleState(),  # not heard of yet
    "learner-0": RoleState(),
    "replay": RoleState(metrics={"queue/depth": 9.0, "queue/leased": 4.0}),
}


@pytest.fixture
def screen() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def recorder(tmp_path: Path, screen: io.StringIO) -> Recorder:
    writer = MetricsWriter(tmp_path, [TensorBoard(tmp_path)])
    view = LiveView(Console(file=screen, width=120), 10)
    return Recorder(writer, view, SplitAdviser(tmp_path, view, asks_at_all=True), first_step=0)


def rows(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_a_row_joins_the_learners_figures_with_those_of_generators_and_replay(recorder, tmp_path):
    recorder.record("learner-0", StepRow(1, {"loss/total": 0.25, "queue/depth": 2.0}), ROLES)
    recorder.close()
    (row,) = rows(tmp_path)
    assert row.pop("idle/generator") == pytest.approx(0.3)
    assert row == {
        "step": 1,
        "loss/total": 0.25,
        "queue/depth": 2.0,  # the learner's, at the batch
        "queue/leased": 4.0,
        "throughput/generator_tokens_per_s": 150.0,
        "generator/tokens_total": 1300.0,
        "generator/num_serving": 2.0,
    }


def test_an_evaluation_lands_in_the_row_of_the_step_it_ended_in_and_that_of_the_start_in_row_0(recorder, tmp_path):
    recorder.record("replay", EvalRow(0, {"eval/accuracy": 0.4}), ROLES)
    recorder.record("learner-0", StepRow(1, {}), ROLES)
    recorder.record("learner-0", StepRow(2, {}), ROLES)
    recorder.record("replay", EvalRow(1, {"eval/accuracy": 0.6}), ROLES)
    recorder.close()
    assert [(row["step"], row.get("eval/accuracy")) for row in rows(tmp_path)] == [(0, 0.4), (1, None), (2, 0.6)]
    assert recorder.num_rows == 2


def test_a_note_is_shown_with_its_sender_and_is_no_row(recorder, tmp_path, screen):
    recorder.record("replay", Note("prompt 3 retried"), ROLES)
    recorder.close()
    assert "replay: prompt 3 retried" in screen.getvalue()
    assert rows(tmp_path) == []


def test_every_tenth_step_and_the_last_have_a_table_of_the_diagnostics_by_lag_in_tensorboard(recorder, tmp_path):
    figures = {"tokens/trained": 1500.0, "lag_0/tokens": 1400.0, "lag_3_4/tokens": 100.0, "mismatch/tokens": 1400.0}
    figures |= {"lag_3_4/ratio_max": 2.5, "lag_3_4/masked_fraction": 0.0625, "policy/effective_sample_size": math.nan}
    for step in range(9, 13):
        recorder.record("learner-0", StepRow(step, figures), ROLES)
    recorder.record("learner-0", StepRow(13, {"tokens/trained": 0.0}), ROLES)
    recorder.record("learner-0", StepRow(14, figures), ROLES)
    recorder.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Tensors("lag/table/text_summary")
    assert [event.step for event in events] == [10, 14]
    lines = events[0].tensor_proto.string_val[0].decode().splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["0, before the first update", "0", "3–4", "all"]
    assert len({line.count("|") for line in lines}) == 1
    cells = dict(zip(lines[0].split(" | "), lines[4].split(" | "), strict=True))
    assert (cells["tokens"], cells["ratio max"], cells["masked"], cells["clipped"]) == ("100", "2.5", "0.0625", "–")
    assert "1,500" in lines[5]
    assert all("lag/table" not in row for row in rows(tmp_path))
