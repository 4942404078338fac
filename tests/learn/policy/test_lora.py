"""An adapter is trained the same on any number of ranks, saved alone, merged exactly, and is what peft says it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch.distributed.device_mesh import DeviceMesh
from transformers import AutoModelForCausalLM, AutoTokenizer

from asyncrl.config.lora import LoraConfig
from asyncrl.config.schema import ModelConfig
from asyncrl.errors import ConfigError, DataError
from asyncrl.learn.adapter_export import export_adapter, export_merged
from asyncrl.learn.checkpoint import load, save
from asyncrl.learn.checkpoint_reader import CheckpointReader
from asyncrl.learn.policy.adapter import add_adapter, without_adapter
from asyncrl.learn.policy.model import load_policy
from asyncrl.learn.update.step import Learner
from asyncrl.learn.version_tensors import VersionTensors
from asyncrl.run.trainer_state import TrainerState
from tests.support.families import FAMILIES, save_family
from tests.support.learn import full_parameters, random_batch, run_ranks, save_tiny_model, tiny_config
from tests.support.publish import merged_by_hand
from tests.support.tokenizer import save_tokenizer

pytestmark = pytest.mark.system

LORA = LoraConfig(rank=3, alpha=5)
OVERRIDES = ["lora.rank=3", "lora.alpha=5", "algorithm.kl_coef=0.1", "learner.mini_batch_size=2", "learner.lr=0.01"]
IDS = torch.tensor([[5, 9, 3, 40, 7, 7, 11, 2]])


def train(mesh: DeviceMesh, model: str, folder: Path) -> dict[str, Any]:
    learner = Learner(tiny_config(model, *OVERRIDES), mesh, 3)
    before = full_parameters(learner)
    metrics = [learner.train(random_batch(seed)) for seed in range(2)]
    directory = folder / f"ranks_{mesh.size()}"
    save(directory, learner, TrainerState(step=2, update=4))
    after = full_parameters(learner)
    exact, rounded = (
        VersionTensors(learner.policy, torch.float32, adapter_dtype, 1 << 20)
        for adapter_dtype in (torch.float32, torch.bfloat16)
    )
    is_rank_0 = mesh.get_rank() == 0
    adapter_alone = exact.gather(keep=is_rank_0, memory={})
    published = {
        "by hand": merged_by_hand(adapter_alone),
        "exact": adapter_alone,
        "rounded": rounded.gather(keep=is_rank_0, memory={}),
        "announced": rounded.metas(),
    }
    metrics.append(learner.train(random_batch(2)))
    return {
        **published,
        "before": before,
        "metrics": metrics,
        "after": after,
        "in the end": full_parameters(learner),
        "directory": directory,
        "in bfloat16": train_in_bfloat16(mesh, model),
    }


def train_in_bfloat16(mesh: DeviceMesh, model: str) -> tuple[dict[str, Any], set[str]]:
    settings = ["model.dtype=bfloat16", "learner.gradient_checkpointing=true"]
    learner = Learner(tiny_config(model, *OVERRIDES, *settings), mesh, 3)
    metrics = learner.train(random_batch(0))
    return metrics, {f"{parameter.requires_grad} {parameter.dtype}" for parameter in learner.policy.parameters()}


def resume(mesh: DeviceMesh, model: str, directory: Path) -> tuple[Any, dict[str, torch.Tensor]]:
    learner = Learner(tiny_config(model, *OVERRIDES), mesh, 3)
    load(directory, learner)
    return learner.train(random_batch(2)), full_parameters(learner)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = save_tiny_model(tmp_path_factory.mktemp("model"), tied=True)
    save_tokenizer(path)
    return path


@pytest.fixture(scope="module")
def runs(model: str, tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("runs")
    return {num_ranks: run_ranks(num_ranks, train, model, folder)[0] for num_ranks in (1, 2, 4)}


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_more_ranks_train_an_adapter_as_one_does(runs: dict[int, dict[str, Any]], num_ranks: int) -> None:
    one, more = runs[1], runs[num_ranks]
    for mine, other in zip(more["metrics"], one["metrics"], strict=True):
        for key in mine.keys() - {"tokens/packing_efficiency"}:  # fewer rows to a rank
            assert mine[key] == pytest.approx(other[key], rel=1e-5, abs=1e-5), key
    for name, value in one["in the end"].items():
        torch.testing.assert_close(more["in the end"][name], value, rtol=0, atol=1e-5, msg=name)


def test_only_the_layers_with_an_adapter_change_and_the_first_policy_is_the_model(
    runs: dict[int, dict[str, Any]], model: str
) -> None:
    original = dict(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).named_parameters())
    for name, value in runs[2]["before"].items():
        assert torch.equal(value, original[name])
        assert torch.equal(value, runs[2]["after"][name]) == (not name.endswith("proj.weight"))


def test_the_reference_is_the_model_without_its_adapter(runs: dict[int, dict[str, Any]]) -> None:
    first, second, _ = runs[1]["metrics"]
    assert first["loss/kl"] == pytest.approx(0, abs=0.01)  # the step's first update: the policy is still the model
    assert second["loss/kl"] > first["loss/kl"]


def test_frozen_weights_are_in_the_compute_type_and_the_adapter_in_float32(runs: dict[int, dict[str, Any]]) -> None:
    for run in runs.values():
        metrics, kinds = run["in bfloat16"]
        assert kinds == {"False torch.bfloat16", "True torch.float32"}
        assert metrics["optim/grad_norm"] == pytest.approx(run["metrics"][0]["optim/grad_norm"], rel=0.05)


def test_base_and_adapter_that_are_published_alone_make_the_merged_weights(runs: dict[int, dict[str, Any]]) -> None:
    for run in runs.values():
        for name, value in run["by hand"].items():
            torch.testing.assert_close(run["after"][name].double(), value, rtol=0, atol=1e-6)


def test_an_adapter_may_travel_rounded_and_is_announced_so(runs: dict[int, dict[str, Any]]) -> None:
    for run in runs.values():
        for name, exact in run["exact"].items():
            expected = exact.bfloat16() if "lora_" in name else exact
            assert torch.equal(run["rounded"][name], expected), name
            assert run["announced"][name].dtype == expected.dtype, name


def test_a_run_goes_on_bit_for_bit_from_a_checkpoint_that_holds_the_adapter_alone(
    runs: dict[int, dict[str, Any]], model: str
) -> None:
    metrics, parameters = run_ranks(1, resume, model, runs[1]["directory"])[0]
    assert metrics == runs[1]["metrics"][-1]
    assert all(torch.equal(parameters[name], value) for name, value in runs[1]["in the end"].items())
    saved = CheckpointReader(runs[1]["directory"]).read_metadata().state_dict_metadata
    assert len(saved) > 0
    assert all("lora_" in name for name in saved if name.startswith(("model.", "optimizer.state.")))


def test_an_exported_adapter_is_peft_s_and_merged_it_has_the_same_logits(
    runs: dict[int, dict[str, Any]], model: str, tmp_path: Path
) -> None:
    export_adapter(runs[2]["directory"], ModelConfig(path=model), LORA, tmp_path / "adapter")
    export_merged(runs[2]["directory"], ModelConfig(path=model), LORA, tmp_path / "merged")
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        plain = base(IDS).logits
        by_peft = PeftModel.from_pretrained(base, tmp_path / "adapter")(IDS).logits
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)(IDS).logits
    torch.testing.assert_close(merged, by_peft, rtol=1e-5, atol=1e-5)
    assert (merged - plain).abs().max() > 0.01
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").vocab_size == 10
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == model
    with pytest.raises(DataError, match="checkpoint of another model"):
        export_adapter(runs[2]["directory"], ModelConfig(path=model), LoraConfig(rank=2), tmp_path / "other")


def of_families(mesh: DeviceMesh, paths: dict[str, str]) -> dict[str, Any]:
    """logprobs with a random adapter, without it, and by transformers from the merged weights."""
    found = {}
    positions, indices = torch.arange(8)[None], torch.arange(7)
    for family, path in paths.items():
        policy = load_policy(ModelConfig(path=path), mesh, lora=LORA)
        with torch.no_grad():
            for parameter in policy.parameters():
                if parameter.requires_grad:
                    parameter.copy_(0.1 * torch.randn_like(parameter))
            outputs = policy(IDS, positions, None, indices, IDS[0, 1:], 1.0)[0]
            with without_adapter(policy.hf):
                plain = policy(IDS, positions, None, indices, IDS[0, 1:], 1.0)[0]
        loss = policy(IDS, positions, None, indices, IDS[0, 1:], 1.0)[0].sum()
        loss.backward()
        trained = {name for name, parameter in policy.hf.named_parameters() if parameter.grad is not None}
        weights = {name: value.full_tensor() for name, value in policy.hf_parameters()}  # type: ignore[attr-defined]
        found[family] = (outputs, plain, weights, trained)
    return found


def logprobs_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits[0, :-1].log_softmax(-1).gather(1, IDS[0, 1:, None])[:, 0]


def test_every_family_computes_with_its_adapter_as_with_the_merged_weights_and_without_it_as_the_base(
    tmp_path: Path,
) -> None:
    paths = {family: save_family(tmp_path / family, family) for family in FAMILIES}
    for family, (outputs, plain, weights, trained) in run_ranks(1, of_families, paths)[0].items():
        hf = AutoModelForCausalLM.from_pretrained(paths[family], dtype=torch.float32, attn_implementation="eager")
        torch.testing.assert_close(plain, logprobs_of(hf), rtol=1e-5, atol=1e-5, msg=family)
        assert {name for name, _ in hf.named_parameters()} == weights.keys()
        hf.load_state_dict(weights, strict=False)
        torch.testing.assert_close(outputs, logprobs_of(hf), rtol=1e-5, atol=1e-5, msg=family)
        assert (outputs - plain).abs().max() > 1e-3, family
        assert trained
        assert all("_proj.lora_" in name or "fc" in name or "dense.lora_" in name for name in trained), family
        assert not any("expert" in name or "lm_head" in name for name in trained), family


def test_a_target_that_the_model_does_not_have_is_named_with_those_that_it_has(model: str) -> None:
    hf = AutoModelForCausalLM.from_pretrained(model)
    with pytest.raises(
        ConfigError, match=r"names qkv, and the linear layers of this model .* are down_proj, gate_proj"
    ):
        add_adapter(hf, LoraConfig(rank=2, targets=["qkv", "q_proj"]))
