"""Bad input as a user meets it: one message with the key or file, exit code 2, and nothing started."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from asyncrl import cli
from asyncrl.commands.simulate import planned
from asyncrl.selftest import selftest
from asyncrl.selftest.suite import CHECKS, ENGINE_CHECKS
from tests.support.models import random_qwen3

TINY = ["--config", str(Path(__file__).parent.parent / "configs" / "quickstart.yaml"), "model.warmup_steps=0"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, where runs would be written."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "other.jsonl").write_text('{"question": "1+1=", "answer": "2"}\n')
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no more PAR1")
    (tmp_path / "runs" / "taken").mkdir(parents=True)
    return tmp_path


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The message of a launch that is refused before Ray starts, and leaves no run directory."""
    assert cli.main(["launch", *TINY, *arguments]) == cli.EXIT_BAD_INPUT
    out, err = capsys.readouterr()
    assert "starting Ray" not in out
    assert {path.name for path in Path("runs").iterdir()} <= {"taken", "models"}
    assert err.startswith("error: ")
    return err.removeprefix("error: ").rstrip("\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["learner.bach_size=8"], "unknown key 'learner.bach_size'; did you mean 'learner.batch_size'?"),
        (["learner.batch_size=few"], "key 'learner.batch_size': Value 'few' of type 'str' could not be converted"),
        (["learner.mini_batch_size=5"], "learner.batch_size=32 is not divisible by learner.mini_batch_size=5"),
        (["algorithm.group_size=1"], "algorithm.group_size=1 with algorithm.advantage=grpo"),
        (["generator.max_tokens=100"], "= 108 tokens, but the model takes 64 (max_position_embeddings)"),
        (["reward.terms=[{function: no_module:f}]"], "reward.terms: 'no_module:f': cannot import 'no_module'"),
        (
            ["generator.engine=tgi"],
            "generator.engine: unknown Class 'tgi'; use vllm, sglang, module:Class or file.py:Class",
        ),
        (["model.path=./none"], "model.path=./none: no such folder"),
        (["data.train=none"], "data.train: none does not exist"),
        (["data.train=empty.jsonl"], "data.train: empty.jsonl has no rows"),
        (["data.train=other.jsonl"], "data.train: other.jsonl:1: no column 'prompt'; it has question, answer"),
        (["data.eval=broken.parquet"], "data.eval: broken.parquet: not a readable parquet file"),
        (["--run-dir", "runs/taken"], "run directory runs/taken exists; choose another --run-dir"),
        (["--resume", "runs/taken"], "--resume takes the run's own configuration"),
    ],
)
def test_bad_input_is_one_message_before_anything_starts(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = refusal(capsys, *arguments)
    assert message in text
    assert "\n" not in text


def test_a_port_in_use_is_found_before_ray_starts(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"replay.port: cannot bind 127.0.0.1:{port}" in refusal(capsys, f"replay.port={port}")


def test_overrides_may_stand_on_both_sides_of_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    message = refusal(capsys, "learner.batch_size=8", "--generators", "1", "learner.mini_batch_size=3")
    assert message.startswith("learner.batch_size=8 is not divisible by learner.mini_batch_size=3")


@pytest.mark.parametrize("arguments", [["launch", "--bogus", "a.b=1"], ["scale", "RUN", "--generators", "1", "a.b=1"]])
def test_an_unknown_option_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == cli.EXIT_BAD_INPUT
    assert "unrecognized arguments: " in capsys.readouterr().err


def test_without_a_command_it_prints_its_help(capsys: pytest.CaptureFixture) -> None:
    assert cli.main([]) == 2
    assert "launch" in capsys.readouterr().out


def test_it_says_its_version(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"asyncrl {version('asyncrl')}\n"


def test_check_shows_its_verdict_first_and_the_configuration_only_on_demand(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["check", *TINY]) == 0
    short = capsys.readouterr().out
    assert short.startswith("This configuration can run.\n")
    assert "max_staleness: 2" not in short
    assert cli.main(["check", "--show-config", *TINY]) == 0
    assert "max_staleness: 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare", "arithmetic", "--out", "/proc/x"], "--out /proc/x: cannot write there"),
        (
            ["prepare", "gsm9k", "--out", "x"],
            "prepare gsm9k: use gsm8k, arithmetic or smollm2, or --from verl | trl for a file",
        ),
        (["prepare", "--from", "verl", "other.jsonl", "--out", "x"], "other.jsonl:1: verl's layout has the columns"),
        (["check", "data.train=empty.jsonl"], "data.train: empty.jsonl has no rows"),
        (["check", "data.eval=broken.parquet", "run.eval_every=1"], "broken.parquet: not a readable parquet file"),
        (["check", "data.train=broken.parquet"], "broken.parquet: not a readable parquet file"),
        (["check", "reward.terms=[{function: no.py:f}]"], "there is no file"),
    ],
)
def test_other_commands_refuse_bad_input_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == cli.EXIT_BAD_INPUT
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_check_prints_a_prompt_as_the_model_will_see_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    messages = [{"role": "system", "content": "Add."}, {"role": "user", "content": "1+1="}]
    (folder / "rows.jsonl").write_text(json.dumps({"prompt": messages, "answer": "2"}))
    (folder / "chat.jinja").write_text(
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>"
    )
    model = random_qwen3(folder / "model", tied=True)
    files = [f"model.path={model}", "data.train=rows.jsonl", "data.eval=null", "data.chat_template=chat.jinja"]
    assert cli.main(["check", *files, "run.eval_every=0", "data.max_prompt_tokens=50", "generator.max_tokens=8"]) == 0
    out = capsys.readouterr().out
    assert "1 training prompts, 0 held out" in out
    assert "1+1=" in out
    assert "its answer: '2'" in out


def test_a_negative_seed_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["prepare", "arithmetic", "--out", "x", "--seed", "-5"])
    assert caught.value.code == cli.EXIT_BAD_INPUT
    assert "--seed: must be 0 or above" in capsys.readouterr().err


def test_simulate_and_plan_answer_for_the_quickstart(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["simulate", *TINY, "--steps", "10", "--price", "2", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["staleness_max"] <= 2
    assert result["dollars_per_million_tokens"] > 0
    assert cli.main(["plan", *TINY, "--gpus", "3", "--steps", "10"]) == 0
    assert "replay.max_staleness=" in capsys.readouterr().out


def test_a_planned_launch_takes_the_chosen_split_and_refuses_a_second_word_on_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    taken = planned(Path(TINY[1]), ["cluster.device=cpu", "run.seed=3"], 2)
    assert taken[:2] == ["cluster.device=cpu", "run.seed=3"]
    assert {"generator.count=1", "generator.tensor_parallel=1", "learner.count=1"} <= set(taken)
    assert cli.main(["launch", *TINY, "--plan", "2", "--generators", "1"]) == cli.EXIT_BAD_INPUT
    assert "--plan chooses generator.count; leave it out" in capsys.readouterr().err
    assert cli.main(["launch", "--plan", "2", "--resume", "runs/taken"]) == cli.EXIT_BAD_INPUT
    assert "a resumed one keeps its division" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "3"], "--steps 3: at least 10"),
        (["--accelerator", "abacus"], "--accelerator abacus: known are h100, a100, rtx4090, cpu"),
        (["--price", "-1"], "--price -1: give dollars an hour, above 0"),
        (["--death", "soon"], "--death soon: give AT:FOR in seconds"),
        (["--death", "5:0"], "--death 5:0: AT must be at least 0 and FOR above 0"),
        (["--accelerator", "h100", "cluster.device=cpu"], "--accelerator h100 beside cluster.device=cpu"),
    ],
)
def test_a_simulation_that_cannot_be_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["simulate", *TINY, *arguments]) == cli.EXIT_BAD_INPUT
    assert message in capsys.readouterr().err


def test_only_a_run_can_be_learned_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["simulate", "--from", "runs/taken"]) == cli.EXIT_BAD_INPUT
    assert "--from runs/taken: no run to learn from, it has no config.yaml" in capsys.readouterr().err
    assert cli.main(["simulate", *TINY, "--from", "runs/taken"]) == cli.EXIT_BAD_INPUT
    assert "--from takes the run's own configuration" in capsys.readouterr().err


def test_a_stream_that_is_not_utf_8_gets_what_it_can_show(folder: Path) -> None:
    (folder / "rows.jsonl").write_text(json.dumps({"prompt": "2 ≤ 3 → 1+1=", "answer": "2"}), encoding="utf-8")
    arguments = ["check", "data.train=rows.jsonl", "data.eval=null", "run.eval_every=0", "data.max_prompt_tokens=20"]
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    command = [sys.executable, "-m", "asyncrl", *arguments]
    result = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    assert b"2 ? 3 ? 1+1=" in result.stdout


def test_selftest_of_an_engine_runs_the_engines_checks_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(
        selftest, "selftest", lambda config, console, checks: asked.append((config.generator.engine, checks))
    )
    cli.main(["selftest", "--engine", "mine.py:Mine"])
    cli.main(["selftest", "generator.engine=mine.py:Mine"])
    assert asked == [("mine.py:Mine", ENGINE_CHECKS), ("mine.py:Mine", CHECKS)]


def test_selftest_refuses_an_engine_that_is_none_before_anything_starts(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["selftest", "--engine", "json:JSONDecoder"]) == cli.EXIT_BAD_INPUT
    assert "lacks dead, warm_up, sample" in capsys.readouterr().err
