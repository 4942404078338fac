"""`data.train=environment`: rows, and what the tiny model is warmed up on, come from the environment."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from asyncrl.commands.inputs import make_inputs
from asyncrl.config.load import load
from asyncrl.errors import ConfigError

ROOT = Path(__file__).parents[2]


def test_an_environments_rows_are_the_prompts_and_its_warmup_makes_the_tiny_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    config = load("examples/calculator.yaml", [f"run.dir={tmp_path}", "model.warmup_steps=0"])
    inputs = make_inputs(config)
    assert (len(inputs.train), len(inputs.eval)) == (90 * 90 - 256, 256)
    prompt = inputs.train[0]
    tokenizer = AutoTokenizer.from_pretrained(inputs.model_path)
    assert tokenizer.decode(prompt.token_ids) == prompt.text
    assert tokenizer.unk_token_id not in tokenizer("?37*46=1702;")["input_ids"]  # calls stand in the warm-up alone


def test_rows_of_an_environment_that_has_none_are_refused(tmp_path: Path) -> None:
    name = "environment.name=tests.support.faults.environment_faults:Faulty"
    config = load(None, ["model.path=tiny", "data.train=environment", f"run.dir={tmp_path}", name])
    with pytest.raises(ConfigError, match=r"data.train=environment: .*Faulty has no method `rows\(split, seed\)`"):
        make_inputs(config)
