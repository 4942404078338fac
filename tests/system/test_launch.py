"""`asyncrl launch` as a user runs it: the real parts."""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM

from asyncrl import cli
from tests.support.launch import (
    STAND_IN,
    Launched,
    assert_exact,
    freeze_behind_a_checkpoint,
    quick,
    role_processes,
    trained,
)
from tests.support.metric_names import undocumented
from tests.support.other_trainers import TEMPLATE, recipes, write_trl, write_verl

pytestmark = pytest.mark.system


def test_a_run_trains_asynchronously_then_goes_on_from_its_checkpoint_and_exports(
    start: Callable[..., Launched], runs: Path
) -> None:
    first = start("plain", *quick(32, "run.eval_every=6", "run.save_every=15", "replay.max_staleness=2"))
    assert first.wait() == 0, first.output
    rows = first.rows()
    assert [row["step"] for row in rows] == list(range(33))
    lags = [row["staleness/max"] for row in rows[1:]]
    assert max(lags) in (1, 2)
    assert all(row["staleness/violations"] == 0 for row in rows[1:])
    assert {"eval/accuracy"} <= rows[0].keys()
    assert rows[0]["eval/num_versions"] == 1
    assert rows[-1]["eval/num_versions"] == 1
    every_step = set.intersection(*(set(row) for row in rows[1:]))
    assert {"reward/mean", "loss/total", "queue/depth", "time/publish_s"} <= every_step
    assert undocumented(set().union(*rows)) == set()
    # Generators report once a second, so the first rows of a fast machine have no figure of theirs.
    assert "throughput/generator_tokens_per_s" in rows[-1]
    assert list((first.run_dir / "tensorboard").iterdir())
    assert sorted(path.name for path in (first.run_dir / "checkpoints").iterdir()) == [
        "step_000015",
        "step_000030",
        "step_000032",
    ]

    second = start("plain", "--resume", str(first.run_dir), "run.steps=35")
    assert second.wait() == 0, second.output
    assert [row["step"] for row in second.rows()] == list(range(36))
    assert trained(second) == [8] * 35

    assert cli.main(["export", str(first.run_dir), "--out", str(runs / "exported")]) == 0
    assert AutoModelForCausalLM.from_pretrained(runs / "exported").config.model_type == "qwen3"


SMALL = (
    "model.path=tiny",
    "model.warmup_steps=100",
    "model.dtype=auto",
    "cluster.device=cpu",
    "data.max_prompt_tokens=8",
    "generator.max_tokens=6",
)


def ported(runs: Path, page: str, write: Callable[[Path], None]) -> list[str]:
    """The first recipe of a page of docs/ and data of its layout, made small enough for this machine."""
    folder = runs / Path(page).stem
    folder.mkdir()
    (folder / "recipe.yaml").write_text(recipes(page)[0])
    (folder / "chat.jinja").write_text(TEMPLATE)
    write(folder)
    template = f"data.chat_template={folder}/chat.jinja"
    files = [f"data.train={folder}/train.parquet", f"data.eval={folder}/test.parquet", template]
    return ["--config", str(folder / "recipe.yaml"), *files, *SMALL, "run.eval_every=0", "run.trackers=[]"]


def test_trls_configuration_trains_on_a_conversational_data_set(start: Callable[..., Launched], runs: Path) -> None:
    """As TRL it is synchronous: every token is on-policy. Refilled, every group of a batch has a signal."""
    settings = quick(5, "learner.count=1", "generator.max_groups_in_flight=32", "algorithm.zero_variance=refill")
    run = start("trl", *ported(runs, "from_trl.md", write_trl), *settings)
    assert run.wait() == 0, run.output
    assert [row["staleness/max"] for row in run.rows()] == [0] * 5
    assert all(abs(float(row["policy/kl_behaviour"])) < 1e-9 for row in run.rows())  # type: ignore[arg-type]
    assert all(row["reward/zero_variance_fraction"] == 0 for row in run.rows())
    assert trained(run) == [8] * 5
    counts = sqlite3.connect(run.run_dir / "ledger.sqlite").execute(
        "SELECT count(*) FROM prompts WHERE state = 'filtered'"
    )
    assert counts.fetchone()[0] > 0


def test_a_run_with_an_engine_of_ones_own_trains_on_its_exact_logprobs_and_survives_its_death(
    start: Callable[..., Launched],
) -> None:
    run = start("own", "--generators", "2", *quick(80, "run.eval_every=0", "replay.max_staleness=0", STAND_IN))
    run.wait_for_step(3)
    os.kill(run.pid_of("generator-1"), signal.SIGKILL)
    assert run.wait() == 0, run.output
    assert "generator-1 failed: its process died (killed, crashed or out of memory); restart 1 of 3" in run.output
    assert [row["step"] for row in run.rows()] == list(range(1, 81))
    assert all(abs(float(row["mismatch/ratio_max"]) - 1) < 1e-4 for row in run.rows())  # type: ignore[arg-type]
    assert trained(run) == [8] * 80


def test_four_generators_and_four_learners_run_on_two_cores_while_a_controller_lets_them_run_ahead(
    start: Callable[..., Launched],
) -> None:
    settings = quick(10, "run.eval_every=0", "replay.max_staleness=2", "replay.ess_target=0.5", STAND_IN)
    run = start("four", "--generators", "4", "--learners", "4", *settings)
    assert run.wait() == 0, run.output
    assert [row["staleness/eta"] for row in run.rows()] == [0] * 6 + [1] * 4
    assert all(row["staleness/max"] <= row["staleness/eta"] for row in run.rows())  # type: ignore[operator]


def test_verls_recipe_trains_on_verls_file(start: Callable[..., Launched], runs: Path) -> None:
    """It has a tensor-parallel generator and several learners, here one and two."""
    recipe = ported(runs, "from_verl.md", write_verl)
    run = start("verl", *recipe, *quick(4, "learner.mini_batch_size=4"), "--generators", "1", "--learners", "2")
    assert run.wait() == 0, run.output
    assert len(run.rows()) == 4
    assert all(0 < row["reward/accuracy"] < 1 for row in run.rows())  # type: ignore[operator]
    assert trained(run) == [8] * 4


def test_generators_join_and_leave_a_live_run(start: Callable[..., Launched], capsys: pytest.CaptureFixture) -> None:
    run = start("scale", *quick(10_000, "run.eval_every=0", STAND_IN))
    num_rows = run.wait_for_row("generator/num_serving", 1)
    for number, answer in ((3, "generators: 1 → 3 (generator-1 joins, generator-2 joins)"), (1, "generators: 3 → 1")):
        assert cli.main(["scale", str(run.run_dir), "--generators", str(number)]) == 0
        assert answer in capsys.readouterr().out
        num_rows = run.wait_for_row("generator/num_serving", number, after=num_rows)
    assert cli.main(["scale", str(run.run_dir), "--generators", "0"]) == 2
    run.process.send_signal(signal.SIGINT)
    assert run.wait() == 130, run.output
    assert {"generator-1 has left", "generator-2 has left"} <= set(run.output.splitlines())
    assert " failed" not in run.output
    assert_exact(run, len(run.rows()))


def test_at_staleness_0_a_run_that_was_killed_and_resumed_is_bit_for_bit_the_run_that_was_not(
    start: Callable[..., Launched],
) -> None:
    """An adapter under top-k and top-p; that all weights are restored to the bit: tests/learn/test_checkpoint.py."""
    sampling = ("generator.top_k=8", "generator.top_p=0.9", "replay.max_staleness=0")
    settings = ("run.eval_every=0", "run.save_every=8", "run.stop_timeout_s=5", "lora.rank=8", *sampling)
    cut = start("cut", *quick(10_000, *settings), "run.heartbeat_timeout_s=5")
    cut.wait_for_step(11)
    saved = freeze_behind_a_checkpoint(cut)
    for process in [psutil.Process(cut.process.pid), *role_processes(cut)]:
        process.kill()
    heartbeats = "run.heartbeat_timeout_s=60"  # a busy machine may stand still for longer than the frozen run's 5 s
    resumed = start("cut", "--resume", str(cut.run_dir), f"run.steps={saved + 10}", heartbeats)
    assert resumed.wait() == 0, resumed.output
    assert f"going over the steps {saved + 1} to " in resumed.output
    whole = start("whole", *quick(saved + 10, *settings))
    assert whole.wait() == 0, whole.output
    for key in ("loss/total", "optim/grad_norm", "reward/mean", "policy/entropy", "batch/prompts_crc32"):
        assert [row[key] for row in resumed.rows()] == [row[key] for row in whole.rows()], key
    assert max(row["policy/kl_behaviour"] for row in whole.rows()) < 1e-6, "μ is not the policy"
    parameters = [exported_parameters(run) for run in (whole, resumed)]
    assert all(torch.equal(parameters[0][name], parameters[1][name]) for name in parameters[0])


def exported_parameters(run: Launched) -> dict[str, torch.Tensor]:
    out = run.run_dir / "exported"
    assert cli.main(["export", str(run.run_dir), "--out", str(out)]) == 0
    return AutoModelForCausalLM.from_pretrained(out).state_dict()
