from __future__ import annotations

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from asyncrl.run.metrics import MetricValue
from asyncrl.watch.console import LiveView

ROW: dict[str, MetricValue] = {
    "step": 12,
    "reward/mean": 0.4219,
    "reward/accuracy": 0.42,
    "loss/total": -0.0123,
    "policy/kl_behaviour": 0.0031,
    "staleness/mean": 1.24,
    "staleness/max": 2,
    "staleness/eta": 4,
    "queue/depth": 14,
    "throughput/generator_tokens_per_s": 4480.4,
    "throughput/learner_tokens_per_s": 19203.0,
    "idle/generator": 0.12,
    "idle/learner": 0.4,
    "time/step_s": 3.0,
    "time/publish_s": 0.12,
}


def view_on(terminal: bool, width: int = 80, num_steps: int = 150) -> tuple[LiveView, io.StringIO]:
    out = io.StringIO()
    return LiveView(Console(file=out, force_terminal=terminal, width=width), num_steps), out


def plain(out: io.StringIO) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue()).replace("\r", "\n")


def test_away_from_a_terminal_every_step_is_one_line_and_the_columns_line_up() -> None:
    view, out = view_on(terminal=False)
    view.start()
    view.phase("generator-0", "loading the model [1/2]")
    view.step(ROW)
    view.step({"step": 113, "reward/mean": -1.0, "time/step_s": 3.0})
    view.evaluation(113, {"eval/accuracy": 0.515})
    view.event("checkpoint at runs/x/[y]")
    view.stop()
    phase, first, second, evaluation, event = out.getvalue().splitlines()
    assert phase == "generator-0: loading the model [1/2]"
    assert evaluation == "evaluation of version 113: accuracy 51.5%"
    assert event == "checkpoint at runs/x/[y]"
    assert first.startswith("step  12/150  reward  0.422  acc  42.0%  loss  -0.0123")
    assert "4,480 tok/s, 12% idle" in first
    assert first.endswith("3.00 s  0:06:54 left")
    assert [first.index(name) for name in ("reward", "loss", "queue", "learn")] == [
        second.index(name) for name in ("reward", "loss", "queue", "learn")
    ]
    assert "\x1b" not in out.getvalue()


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_live_view_shows_every_number_and_stays_within_the_width(width: int) -> None:
    view, out = view_on(terminal=True, width=width)
    view.start()
    view.evaluation(10, {"eval/accuracy": 0.515})
    view.step(ROW)
    view.stop()
    text = plain(out)
    assert all(len(line) <= width for line in text.splitlines())
    if width >= 80:
        for shown in (
            "step 12/150",
            "0.422",
            "42.0%",
            "51.5% at step 10",
            "-0.0123",
            "0.0031",
            "1.24",
            "2 (η 4)",
            "14 groups",
        ):
            assert shown in text
        for shown in ("4,480 tok/s, 12% idle", "19,203 tok/s, 40% idle", "mostly learners", "0:06:54 left", "0.12 s"):
            assert shown in text


def test_on_a_terminal_roles_come_up_in_place_and_the_last_evaluation_stays_in_view() -> None:
    view, out = view_on(terminal=True)
    view.start()
    view.phase("replay", "ready")
    view.phase("generator-0", "loading the model")
    view.evaluation(10, {"eval/accuracy": 0.515})
    view.step(ROW)
    view.step({"step": 13, "reward/mean": 0.5})
    view.event("stopping")
    view.stop()
    view.stop()
    text = plain(out)
    assert "loading the model" in text
    assert "stopping" in text
    last_frame = text[text.rindex("step 13/150") :]
    assert "51.5% at step 10" in last_frame


@given(
    st.dictionaries(
        st.sampled_from(sorted(set(ROW) - {"step", "time/step_s"})),
        st.one_of(st.floats(), st.integers(-(10**12), 10**12), st.text(), st.lists(st.integers()), st.none()),
    ),
    st.integers(0, 1000),
    st.floats(0, 1e6),
    st.booleans(),
)
def test_no_row_breaks_the_view(row: dict[str, MetricValue], step: int, step_time_s: float, terminal: bool) -> None:
    view, _ = view_on(terminal)
    view.step({"step": step, "time/step_s": step_time_s, **row})
