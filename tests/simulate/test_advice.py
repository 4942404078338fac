"""Whether another split of a run's devices would be faster: when it is said, and when nothing can be."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from asyncrl import cli
from asyncrl.config.load import to_yaml
from asyncrl.data.prompts import save_prompts
from asyncrl.errors import UserError
from asyncrl.ledger.store import LedgerStore
from asyncrl.run.directory import ledger_file, train_file
from asyncrl.run.hardware import Hardware, save_hardware
from asyncrl.run.metrics import MetricsWriter, read_rows
from asyncrl.simulate.advice import advise, can_be_advised
from asyncrl.simulate.better_split import BetterSplit, better_split_of
from asyncrl.simulate.estimator import accelerator_of
from asyncrl.simulate.figures import figures
from asyncrl.simulate.measured import stretches
from asyncrl.simulate.setting import Setting
from asyncrl.simulate.simulation import simulate
from asyncrl.simulate.timings import Timings
from asyncrl.types import Prompt
from asyncrl.watch.console import LiveView
from asyncrl.watch.split_adviser import AFTER_STEPS, SplitAdviser
from tests.simulate.settings import TIMINGS, WORKLOAD, measured, small_config

SLOW_LEARNER = replace(TIMINGS, train_per_token_s=0.004)
SIX_TO_TWO = ("generator.count=6", "learner.count=2")
ROOMY = Hardware("cpu", 64, [])


def write_run(folder: Path, timings: Timings, num_steps: int, hardware: Hardware, *overrides: str) -> Path:
    """A run directory as such a run leaves it, as far as a fit reads it."""
    config = small_config(*overrides)
    result = simulate(Setting(config, timings, WORKLOAD, num_steps, seed=5))
    lengths = np.fromiter(WORKLOAD.lengths(np.random.default_rng(3)), int, 8 * num_steps).reshape(num_steps, 8)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(to_yaml(config))
    save_hardware(folder, hardware)
    save_prompts(train_file(folder), [Prompt(0, [1] * WORKLOAD.prompt_tokens, "", "")])
    LedgerStore(ledger_file(folder), "off").close()
    writer = MetricsWriter(folder)
    for step, drawn in zip(result.steps, lengths, strict=True):
        step_s = step.end_s - step.start_s
        row = {
            "time/step_s": step_s,
            "time/train_s": step.train_s,
            "time/gather_s": timings.gather_s,
            "time/publish_s": timings.transfer_s + timings.stall_s,
            "time/publish_stall_s": timings.stall_s,
            "throughput/learner_tokens_per_s": step.num_tokens / step_s,
            "staleness/mean": step.lag_mean,
            "staleness/max": float(max(step.tokens_by_lag)),
            "length/mean": float(drawn.mean()),
            "length/max": float(drawn.max()),
            "length/truncated_fraction": float((drawn == WORKLOAD.max_tokens).mean()),
            "generator/num_serving": float(config.generator.count),
            "generator/tokens_total": float(step.fleet.num_tokens),
            "generator/busy_total_s": step.fleet.busy_s,
            "queue/batch_held_total_s": 0.0,
        }
        writer.write(step.step + 1, row)
    writer.close()
    return folder


@pytest.fixture(scope="module")
def lopsided(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six generators wait for two learners."""
    return write_run(tmp_path_factory.mktemp("run") / "run", SLOW_LEARNER, 60, ROOMY, *SIX_TO_TWO)


def test_a_better_split_gains_what_the_true_timings_give_it() -> None:
    run = measured(SLOW_LEARNER, *SIX_TO_TWO)
    better = better_split_of(run, "cpu")
    assert better is not None
    assert better.num_generators + better.num_learners == 8
    assert better.num_learners > 2

    def samples_per_s(num_generators: int) -> float:
        config = small_config(f"generator.count={num_generators}", f"learner.count={8 - num_generators}")
        return figures(simulate(Setting(config, SLOW_LEARNER, WORKLOAD, 100, seed=8))).samples_per_s

    speeds = {num_generators: samples_per_s(num_generators) for num_generators in range(1, 8)}
    assert speeds[better.num_generators] >= 0.95 * max(speeds.values())
    assert better.speedup == pytest.approx(speeds[better.num_generators] / speeds[6], rel=0.1)


def test_nothing_is_said_of_a_split_that_is_nearly_the_best_one() -> None:
    best = better_split_of(measured(SLOW_LEARNER, *SIX_TO_TWO), "cpu")
    assert isinstance(best, BetterSplit)
    again = measured(SLOW_LEARNER, f"generator.count={best.num_generators}", f"learner.count={best.num_learners}")
    assert better_split_of(again, "cpu") is None


def test_a_model_that_misses_the_run_itself_promises_nothing() -> None:
    run = measured(SLOW_LEARNER, *SIX_TO_TWO)
    with pytest.raises(UserError, match="something that is not simulated decides this run's speed"):
        better_split_of(replace(run, samples_per_s=run.samples_per_s / 1.2), "cpu")


def test_two_devices_have_no_other_split() -> None:
    assert better_split_of(measured(SLOW_LEARNER), "cpu") is None


def test_the_report_says_in_a_sentence_which_split_would_be_faster(
    lopsided: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["report", str(lopsided), "--json"]) == 0
    split = json.loads(capsys.readouterr().out)["split"]
    assert split["speedup"] > 1.1
    assert split["why_none"] is None
    assert cli.main(["report", str(lopsided)]) == 0
    assert f"• {split['better']}" in capsys.readouterr().out
    assert f"{' '.join(split['overrides'])} instead of 6 and 2" in split["better"]


@pytest.mark.parametrize(
    ("num_steps", "num_cpus", "overrides", "reason"),
    [
        (25, 8, SIX_TO_TWO, "9 processes share 8 cores (cluster.device=cpu)"),
        (19, 9, SIX_TO_TWO, "19 steps since the run's processes changed last; 20 are needed"),
        (25, 9, ("generator.engine=vllm,sglang", *SIX_TO_TWO), "the generators differ in speed"),
    ],
)
def test_the_report_says_why_it_has_no_advice(
    tmp_path: Path, num_steps: int, num_cpus: int, overrides: tuple[str, ...], reason: str
) -> None:
    advice = advise(write_run(tmp_path, SLOW_LEARNER, num_steps, Hardware("cpu", num_cpus, []), *overrides))
    assert advice.better is None
    assert reason in (advice.why_none or "")
    assert "no advice on the split: " in (advice.note or "")


def test_a_run_is_cut_where_its_generators_change_or_a_process_begins_anew(lopsided: Path) -> None:
    rows = read_rows(lopsided)
    assert [len(part) for part in stretches(rows)] == [60]
    for row in rows[20:]:
        row["generator/num_serving"] -= 1
    for row in rows[45:]:
        row["queue/batch_held_total_s"] = -1.0
    assert [len(part) for part in stretches(rows)] == [20, 25, 15]


@pytest.mark.parametrize(
    ("kinds", "name"),
    [(["A100"], "a100"), (["GeForce-RTX-4090"], "rtx4090"), (["B200"], None), (["A100", "H100"], None), ([], None)],
)
def test_a_gpu_has_the_data_sheet_of_its_name(kinds: list[str], name: str | None) -> None:
    assert accelerator_of(Hardware("gpu", 8, kinds)) == name


# ── the console of a live run ──


@pytest.fixture
def screen() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def adviser(lopsided: Path, screen: io.StringIO) -> Iterator[SplitAdviser]:
    adviser = SplitAdviser(lopsided, LiveView(Console(file=screen, width=200), 500), asks_at_all=True)
    yield adviser
    adviser.close()


def look_until_answered(adviser: SplitAdviser, num_steps: int) -> None:
    adviser.look(num_steps)
    deadline_s = time.monotonic() + 120
    while adviser.asks:
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
        adviser.look(num_steps)


def say(answer: str) -> str:
    """A program that answers as `asyncrl report --json` does."""
    return f"""print('{{"split": {{"better": "{answer}", "overrides": ["{answer}"]}}}}')"""


def test_the_console_says_what_the_report_says_after_enough_steps(
    adviser: SplitAdviser, screen: io.StringIO, lopsided: Path
) -> None:
    adviser.look(AFTER_STEPS[0] - 1)
    assert not adviser.asks
    look_until_answered(adviser, AFTER_STEPS[0])
    assert screen.getvalue().splitlines() == [advise(lopsided).better]


def test_it_is_said_again_only_when_it_has_changed(
    adviser: SplitAdviser, screen: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    for num_steps, answer in zip(AFTER_STEPS, ["take 5", "take 5", "take 4"], strict=True):
        monkeypatch.setattr(adviser, "command", [sys.executable, "-c", say(answer)])
        look_until_answered(adviser, num_steps)
    assert screen.getvalue() == "take 5\ntake 4\n"
    adviser.look(10 * AFTER_STEPS[-1])
    assert not adviser.asks


def test_an_answer_that_fails_is_in_the_log_and_not_in_the_console(
    adviser: SplitAdviser, screen: io.StringIO, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    programs = ["import sys; sys.exit('no room')", "print('no JSON')"]
    for num_steps, program in zip(AFTER_STEPS, programs, strict=False):
        monkeypatch.setattr(adviser, "command", [sys.executable, "-c", program])
        look_until_answered(adviser, num_steps)
    monkeypatch.setattr(adviser, "command", ["/no/such/program"])
    adviser.look(AFTER_STEPS[-1])
    assert screen.getvalue() == ""
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 3
    assert "no room" in caplog.text


def test_a_question_that_is_under_way_ends_with_the_run(adviser: SplitAdviser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adviser, "command", [sys.executable, "-c", "import time; time.sleep(600)"])
    adviser.look(AFTER_STEPS[0])
    assert adviser.asks
    adviser.close()
    assert not adviser.asks


def test_where_no_answer_can_come_nobody_is_asked(lopsided: Path, screen: io.StringIO) -> None:
    adviser = SplitAdviser(lopsided, LiveView(Console(file=screen), 500), asks_at_all=False)
    adviser.look(AFTER_STEPS[-1])
    assert not adviser.asks


@pytest.mark.parametrize(
    ("num_cpus", "overrides", "can"),
    [
        (2, [], False),  # the quickstart
        (3, ["generator.count=4"], True),  # with one generator each process has a core
        (3, ["learner.count=2"], False),
        (64, ["generator.engine=vllm,sglang", "generator.count=2"], False),
    ],
)
def test_a_run_can_be_advised_when_scaling_it_could_give_each_process_a_core(
    num_cpus: float, overrides: list[str], can: bool
) -> None:
    assert can_be_advised(small_config(*overrides), Hardware("cpu", num_cpus, [])) == can
