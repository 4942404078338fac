"""Bad input of `asyncrl eval` ends before an engine starts; a good one is sampled and scored as in a run."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet
import pytest

from asyncrl import cli
from tests.support.launch import STAND_IN
from tests.support.models import random_qwen3

LIMITS = ["data.max_prompt_tokens=16", "generator.max_tokens=8"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a model and two data files."""
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))  # for the stand-in engine
    monkeypatch.chdir(tmp_path)
    random_qwen3(tmp_path / "model", tied=True)
    for name, sums in (("a.jsonl", ["1+1=", "2+3="]), ("b.jsonl", ["4+4="])):
        rows = [{"prompt": text, "answer": "8"} for text in sums]
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["model", *LIMITS, "-k", "4", "--data", "a.jsonl"],
            "run.eval_temperature=0 gives the same completion 4 times",
        ),
        (["model", *LIMITS, "--data", "a.jsonl", "none.jsonl"], "none.jsonl does not exist"),
        (["model", *LIMITS, "--data", "a.jsonl", "a.jsonl"], "name at least one file, and each once"),
        (["model", *LIMITS, "-k", "0", "--data", "a.jsonl"], "k=0: k is 1 or more"),
        (["model", "--data", "a.jsonl"], "but the model takes 64 (max_position_embeddings)"),
        (["nowhere", *LIMITS, "--data", "a.jsonl"], "nowhere"),
        (["model", *LIMITS, "reward.terms=[{function: no:f}]", "--data", "a.jsonl"], "cannot import 'no'"),
        (["model", *LIMITS, "--data", "a.jsonl", "--answers", "a.jsonl"], "give a new .parquet file"),
    ],
)
def test_bad_input_is_one_message_before_an_engine_starts(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncrl.evaluation.evaluate._sample", lambda *_: pytest.fail("an engine was started"))
    assert cli.main(["eval", *arguments]) == cli.EXIT_BAD_INPUT
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


@pytest.mark.system
def test_several_files_are_sampled_together_and_every_answer_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["model", *LIMITS, STAND_IN, "run.eval_temperature=1", "-k", "2", "4"]
    assert cli.main(["eval", *arguments, "--data", "a.jsonl", "b.jsonl", "--answers", "out.parquet", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert [(each["data"], each["num_prompts"], each["num_samples"]) for each in figures] == [
        ("a.jsonl", 2, 4),
        ("b.jsonl", 1, 4),
    ]
    answers = pyarrow.parquet.read_table("out.parquet").to_pylist()
    assert [(row["data"], row["row"], row["sample"]) for row in answers] == [
        (name, row, sample) for name, row in (("a.jsonl", 0), ("a.jsonl", 1), ("b.jsonl", 0)) for sample in range(4)
    ]
    assert all(row["correct"] == (row["final_answer"] == "8") for row in answers)
    mean = sum(row["correct"] for row in answers[:8]) / 8
    assert figures[0]["accuracy"]["pass@1"]["value"] == pytest.approx(mean)
    assert len({row["completion"] for row in answers}) > 1
    assert all(1 <= row["num_tokens"] <= 8 for row in answers)


@pytest.mark.system
def test_an_engine_that_cannot_start_is_a_failure_with_its_last_words(capsys: pytest.CaptureFixture[str]) -> None:
    engine = "generator.engine=tests.support.faults.broken_engine:BrokenEngine"
    assert cli.main(["eval", "model", *LIMITS, engine, "--data", "a.jsonl"]) == cli.EXIT_RUN_FAILED
    assert "no such accelerator" in capsys.readouterr().err


@pytest.mark.system
def test_a_reward_that_fails_counts_as_wrong_and_its_reason_is_told(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    Path("my_reward.py").write_text("def broken(completion, answer):\n    return {answer: 1.0}[completion]\n")
    arguments = ["model", *LIMITS, STAND_IN, "reward.terms=[{function: my_reward:broken}]"]
    assert cli.main(["eval", *arguments, "--data", "b.jsonl", "--json"]) == 0
    (figures,) = json.loads(capsys.readouterr().out)
    assert (figures["num_unscored"], figures["reward_mean"], figures["accuracy"]["pass@1"]["value"]) == (1, None, 0.0)
    assert "row 0: 1 completions without a reward: KeyError: " in caplog.text
