"""Model folders as people have them: what cannot be trained is named by `asyncrl check`, and before a run starts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, MiniCPM3Config

from asyncrl.commands.check import run_check
from asyncrl.commands.inputs import make_inputs
from asyncrl.config.checks.check import check
from asyncrl.config.load import load
from asyncrl.config.logit_transform import LogitTransform, read_logit_transform
from asyncrl.config.model_shape import read_model_shape
from asyncrl.errors import ConfigError
from tests.support.models import random_model, random_qwen3


def edit_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def make_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "somewhere"}')


def make_gptq(folder: Path) -> None:
    edit_config(folder, quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 128})


def lose_a_shard(folder: Path) -> None:
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="50KB")
    sorted(folder.glob("model-*.safetensors"))[1].unlink()


def break_off_a_file(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def break_the_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("[]")


def call_it_tied(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    weights["lm_head.weight"][-1, -1] += 1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    edit_config(folder, tie_word_embeddings=True)


def cap_what_reads_no_cap(folder: Path) -> None:
    edit_config(folder, final_logit_softcapping=30.0)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (make_adapter, r"the folder holds an adapter \(adapter_config.json\); merge it"),
        (make_gptq, r"its weights are quantised \(gptq\)"),
        (lose_a_shard, r"1 of the \d+ files in model.safetensors.index.json are missing, such as model-00002-of"),
        (break_off_a_file, "model.safetensors is not whole"),
        (break_the_index, "model.safetensors.index.json is no index of weights"),
        (call_it_tied, "tie_word_embeddings=true, but lm_head.weight and model.embed_tokens.weight are both stored"),
        (cap_what_reads_no_cap, r"changes its logits.*soft_cap=30.0"),
    ],
)
def test_a_folder_that_cannot_be_trained_is_refused_by_check_and_by_launch(
    damage: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    folder = random_qwen3(tmp_path / "model", tied=False)
    config = load(None, [f"model.path={folder}", "data.train=arithmetic", "cluster.device=cpu"])
    read_model_shape(str(folder))
    damage(folder)
    with pytest.raises(ConfigError, match=rf"model\.path={folder}.*{message}"):
        run_check(config, Console(quiet=True))
    with pytest.raises(ConfigError, match=message):
        make_inputs(config)


def test_a_tied_model_that_stores_its_embedding_twice_is_taken(tmp_path: Path) -> None:
    folder = random_qwen3(tmp_path / "model", tied=True)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert read_model_shape(str(folder)).num_layers == 2


def test_a_model_with_latent_attention_is_for_gpus(tmp_path: Path) -> None:
    shape = read_model_shape(str(random_model(tmp_path / "model", "deepseek_v2", tied=False)))
    config = load(
        None, ["model.path=there", "data.train=arithmetic", "data.max_prompt_tokens=16", "generator.max_tokens=32"]
    )
    check(config, "gpu", shape)
    with pytest.raises(ConfigError, match=r"model\.path=there: the model has multi-head latent attention"):
        check(config, "cpu", shape)
    config.generator.engine = "mine:Engine"
    check(config, "cpu", shape)


def test_a_model_that_scales_its_hidden_states_before_the_head_is_refused() -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(MiniCPM3Config(num_hidden_layers=1))
    with pytest.raises(ConfigError, match="MiniCPM3ForCausalLM changes its logits, or the hidden states before them"):
        read_logit_transform(model, "somewhere")


@pytest.mark.parametrize(
    "transform", [LogitTransform(), LogitTransform(2.0), LogitTransform(0.5, 3.0), LogitTransform(soft_cap=0.7)]
)
def test_the_slope_of_a_transform_is_its_derivative(transform: LogitTransform) -> None:
    logits = torch.linspace(-5, 5, 21, dtype=torch.float64)
    small = 1e-6
    above, below = transform(logits + small), transform(logits - small)
    slope = torch.as_tensor(transform.slope(transform(logits.clone())), dtype=torch.float64).expand(21)
    torch.testing.assert_close(slope, (above - below) / (2 * small), rtol=1e-6, atol=1e-8)
