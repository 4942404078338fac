"""Every config in configs/ loads, is possible, and can be described by `asyncrl check` without a GPU."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from asyncrl.commands.check import run_check
from asyncrl.config.load import load
from asyncrl.config.schema import Config
from asyncrl.errors import ConfigError

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "configs").rglob("*.yaml"))
QWEN3_8B = f"model.path={ROOT / 'tests/models/qwen3_8b'}"


def text_of(config: Config) -> str:
    out = io.StringIO()
    run_check(config, Console(file=out, width=200))
    return out.getvalue()


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_each_shipped_config_is_possible_and_can_be_described(file: Path) -> None:
    text = text_of(load(file))
    assert "Topology" in text
    assert "Staleness: at most η" in text


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_the_models_of_the_shipped_configs_fit_their_sequences(file: Path) -> None:
    """Qwen3 models of all sizes share the lengths and head counts that the checks look at, up to 8B."""
    if load(file).model.path != "tiny":
        assert "Memory of a learner rank" in text_of(load(file, [QWEN3_8B]))


def test_the_8b_recipe_takes_eight_gpus_and_says_its_bound_and_its_memory() -> None:
    text = text_of(load(ROOT / "configs/qwen3_8b_gsm8k.yaml", [QWEN3_8B]))
    assert "2 generators × TP 2, 4 learners on 8 GPUs" in text
    assert "(v + η + 1)·B = (v + 1 + 1)·1024: at most 2,048 groups, 10,240 completions" in text
    for part in ("a learner rank (GPU)", "a learner rank (host)", "a generator worker (GPU)", "replay (host)"):
        assert f"Memory of {part}" in text


def test_a_model_that_cannot_be_reached_is_named_and_the_rest_is_still_said() -> None:
    text = text_of(load(ROOT / "configs/qwen3_8b_gsm8k.yaml", ["model.path=nobody/no-such-model"]))
    assert "2 generators × TP 2, 4 learners on 8 GPUs" in text
    assert "no memory estimate" in text
    assert "model.path=nobody/no-such-model: not a local folder" in text
    assert "one with a config.json is enough" in text


def test_a_model_folder_that_does_not_exist_is_named() -> None:
    text = text_of(load(ROOT / "configs/qwen3_8b_gsm8k.yaml", ["model.path=/no/such/folder"]))
    assert "model.path=/no/such/folder: no such folder" in text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["reward.terms=[{function: nummeric}]"], "unknown function 'nummeric'"),
        (["publish.transport=nccl"], "publish.transport=nccl needs GPUs"),
        (["cluster.device=gpu", "generator.tensor_parallel=0"], "generator.tensor_parallel=0 must be above 0"),
    ],
)
def test_an_impossible_config_is_refused_by_the_check(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        text_of(load(ROOT / "configs/quickstart.yaml", overrides))
