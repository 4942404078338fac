from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugin_util import markdown_to_safe_html

from asyncrl.errors import DataError
from asyncrl.run.metrics import FILE_NAME, MetricsWriter, read_rows, to_json, truncate_after
from asyncrl.run.trackers.tensorboard import TensorBoard
from asyncrl.run.trainer_state import ROWS_FILE, saved_rows


def rows_of(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / FILE_NAME).read_text(encoding="utf-8").splitlines()]


def with_tensorboard(run_dir: Path, resume_after: int | None = None) -> MetricsWriter:
    return MetricsWriter(run_dir, [TensorBoard(run_dir, resume_after)], resume_after)


def tensorboard_of(run_dir: Path) -> EventAccumulator:
    return EventAccumulator(str(run_dir / "tensorboard")).Reload()


def test_the_same_numbers_are_in_the_file_and_in_tensorboard(tmp_path: Path) -> None:
    writer = with_tensorboard(tmp_path)
    for step in range(3):
        writer.write(step, {"reward/mean": step / 4, "queue/depth": step, "sample/text": "2+2=\n4 é"})
    writer.close()
    assert rows_of(tmp_path) == [
        {"step": step, "reward/mean": step / 4, "queue/depth": step, "sample/text": "2+2=\n4 é"} for step in range(3)
    ]
    events = tensorboard_of(tmp_path)
    assert [(event.step, event.value) for event in events.Scalars("reward/mean")] == [(0, 0.0), (1, 0.25), (2, 0.5)]
    (text,) = events.Tensors("sample/text/text_summary")[0].tensor_proto.string_val
    assert text.decode() == "    2+2=\n    4 é"


def test_text_of_a_model_is_shown_by_tensorboard_as_it_is_and_loads_and_marks_nothing(tmp_path: Path) -> None:
    hostile = "\x1b[2J\n\n# big ![x](https://example.org/seen) <img src=x onerror=alert(1)>\n```\n[click](https://example.org)"
    writer = with_tensorboard(tmp_path)
    writer.write(0, {"sample/train": hostile})
    writer.close()
    (text,) = tensorboard_of(tmp_path).Tensors("sample/train/text_summary")[0].tensor_proto.string_val
    shown = markdown_to_safe_html(text)
    assert set(re.findall(r"<(\w+)", shown)) == {"pre", "code"}
    assert r"\x1b[2J" in shown
    assert "![x](https://example.org/seen)" in shown


def test_a_number_that_is_not_finite_is_null_in_the_row_and_absent_from_tensorboard(tmp_path: Path) -> None:
    writer = with_tensorboard(tmp_path)
    writer.write(0, {"loss/total": math.nan, "policy/ratio_max": math.inf, "reward/mean": 1.0})
    writer.close()
    assert rows_of(tmp_path) == [{"step": 0, "loss/total": None, "policy/ratio_max": None, "reward/mean": 1.0}]
    assert tensorboard_of(tmp_path).Tags()["scalars"] == ["reward/mean"]


def test_a_list_of_counts_is_a_histogram_of_the_values_0_1_2(tmp_path: Path) -> None:
    writer = with_tensorboard(tmp_path)
    writer.write(0, {"staleness/histogram": [10, 30, 0, 5]})
    writer.write(1, {"staleness/histogram": []})
    writer.close()
    assert rows_of(tmp_path)[0] == {"step": 0, "staleness/histogram": [10, 30, 0, 5]}
    (histogram,) = tensorboard_of(tmp_path).Histograms("staleness/histogram")
    value = histogram.histogram_value
    assert (value.num, value.sum, value.sum_squares, value.min, value.max) == (45, 45, 75, 0, 3)
    assert dict(zip(value.bucket_limit, value.bucket, strict=True)) == {0.5: 10, 1.5: 30, 2.5: 0, 3.5: 5}


def test_rows_after_the_resumed_step_are_cut_and_hidden(tmp_path: Path) -> None:
    first = with_tensorboard(tmp_path)
    for step in range(5):
        first.write(step, {"reward/mean": 1.0})
    first.close()
    resumed = with_tensorboard(tmp_path, resume_after=2)
    resumed.write(3, {"reward/mean": 2.0})
    resumed.close()
    assert [(row["step"], row["reward/mean"]) for row in rows_of(tmp_path)] == [(0, 1.0), (1, 1.0), (2, 1.0), (3, 2.0)]
    seen = tensorboard_of(tmp_path).Scalars("reward/mean")
    assert [(event.step, event.value) for event in seen] == [(0, 1.0), (1, 1.0), (2, 1.0), (3, 2.0)]


def test_text_with_any_end_of_line_is_one_row_and_half_a_character_is_none(tmp_path: Path) -> None:
    text = "a\u2028b\u0085c\x0cd\r\ne"
    writer = MetricsWriter(tmp_path)
    writer.write(0, {"sample/train": text})
    writer.close()
    with (tmp_path / FILE_NAME).open("ab") as file:
        file.write('{"step": 1, "sample/train": "é'.encode()[:-1])
    assert read_rows(tmp_path) == [{"step": 0, "sample/train": text}]
    resumed = MetricsWriter(tmp_path, resume_after=0)
    assert resumed.last_step == 0
    resumed.close()
    assert read_rows(tmp_path) == [{"step": 0, "sample/train": text}]


def test_a_half_written_last_row_is_cut_on_resume(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    path.write_text('{"step": 0}\n{"step": 1}\n{"step": 2, "rew')
    truncate_after(path, 5)
    assert path.read_text() == '{"step": 0}\n{"step": 1}\n'


def test_a_broken_row_in_the_middle_is_named_by_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    path.write_text('{"step": 0}\nrubbish\n{"step": 2}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl:2 "):
        truncate_after(path, 5)
    assert "rubbish" in path.read_text()


def test_the_last_step_of_a_file_and_the_rows_that_checkpoints_have_beyond_it(tmp_path):
    writer = MetricsWriter(tmp_path)
    assert writer.last_step == -1
    writer.write(3, {"loss/total": 1.0})
    writer.close()
    for step, rows in ((4, [{"step": 3}, {"step": 4, "loss/total": math.nan}]), (6, [{"step": 5}, {"step": 6}])):
        folder = tmp_path / "checkpoints" / f"step_{step:06}"
        folder.mkdir(parents=True)
        (folder / ROWS_FILE).write_text("".join(f"{to_json(row)}\n" for row in rows))
    assert MetricsWriter(tmp_path).last_step == 3
    assert saved_rows(tmp_path, after=3, up_to=5) == [{"step": 4, "loss/total": None}, {"step": 5}]
