"""PolicyModel against transformers' own logits, and models that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.distributed.device_mesh import DeviceMesh
from transformers import AutoModelForCausalLM

from asyncrl.algorithms.ratio import MAX_RATIO
from asyncrl.config.algorithm import AlgorithmConfig
from asyncrl.config.schema import ModelConfig
from asyncrl.errors import ConfigError, DataError
from asyncrl.learn.policy import row_attention
from asyncrl.learn.policy.attention import compute_dtype
from asyncrl.learn.policy.model import PolicyModel, load_causal_lm_config, load_policy
from asyncrl.learn.update.mini_batches import MiniBatch, mini_batches
from asyncrl.learn.update.objective import objective
from asyncrl.learn.update.packing import Layout, build_micro_batch, rows_of
from asyncrl.learn.update.step import Learner
from tests.support.learn import random_batch, run_ranks, save_tiny_model, tiny_config

TEMPERATURE = 0.8


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def model_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("model"), tied=request.param)


def one_mini_batch() -> MiniBatch:
    return mini_batches(random_batch(1, step=2), AlgorithmConfig(), 9, 4, 8)[0]


def plain_forward(model: torch.nn.Module, mini_batch: MiniBatch) -> tuple[torch.Tensor, torch.Tensor]:
    logprobs, entropies = [], []
    for i, prompt in enumerate(mini_batch.prompts):
        targets = mini_batch.actions.targets[mini_batch.offsets[i] : mini_batch.offsets[i + 1]]
        ids = torch.cat([torch.from_numpy(prompt).long(), targets])
        distribution = torch.distributions.Categorical(logits=model(ids[None]).logits[0] / TEMPERATURE)
        logprobs.append(distribution.log_prob(ids.roll(-1))[len(prompt) - 1 : -1])
        entropies.append(distribution.entropy()[len(prompt) - 1 : -1])
    return torch.cat(logprobs), torch.cat(entropies)


@pytest.mark.parametrize("layout", ["padded", "shared", "packed"])
def test_every_layout_equals_a_plain_forward_of_each_sequence_and_its_gradient(model_path: str, layout: Layout) -> None:
    mini_batch = one_mini_batch()
    plain = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    attention = row_attention.NAME if layout == "shared" else "sdpa"
    policy = PolicyModel(
        AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32, attn_implementation=attention)
    )
    micro_batch = build_micro_batch(
        mini_batch, rows_of(mini_batch, range(len(mini_batch.prompts)), layout, 1, hidden_size=128, budget=30), layout
    )
    logprobs, entropy = policy(
        micro_batch.input_ids,
        micro_batch.position_ids,
        micro_batch.attention_mask,
        micro_batch.indices,
        micro_batch.actions.targets,
        TEMPERATURE,
        micro_batch.segments,
        micro_batch.rows,
    )
    expected_logprobs, expected_entropy = plain_forward(plain, mini_batch)
    torch.testing.assert_close(logprobs, expected_logprobs, rtol=0, atol=1e-5)
    torch.testing.assert_close(entropy, expected_entropy, rtol=0, atol=1e-5)

    weights = torch.randn(len(logprobs), generator=torch.Generator().manual_seed(0))
    (weights * (logprobs + entropy)).sum().backward()
    (weights * (expected_logprobs + expected_entropy)).sum().backward()
    expected = dict(plain.named_parameters())
    for name, parameter in policy.hf.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-4, atol=1e-4, msg=name)


def test_the_objective_equals_its_formula_token_by_token() -> None:
    actions = one_mini_batch().actions
    generator = torch.Generator().manual_seed(3)
    logprobs, entropy, reference = (-2 * torch.rand(3, len(actions.targets), generator=generator)).unbind()
    algorithm = AlgorithmConfig(loss="ppo_clip", kl_coef=0.5, entropy_coef=0.25, clip_lower=0.1, clip_upper=0.3)
    losses = objective(logprobs, entropy, actions, algorithm, reference_logprobs=reference).losses
    policy = kl = bonus = 0.0
    for t in range(len(logprobs)):
        ratio = min((logprobs[t] - actions.behaviour_logprobs[t]).exp().item(), MAX_RATIO)
        advantage, weight = actions.advantages[t].item(), actions.weights[t].item()
        policy -= weight * min(ratio * advantage, min(max(ratio, 0.9), 1.3) * advantage)
        difference = (reference[t] - logprobs[t]).double()
        kl += weight * (difference.exp() - 1 - difference).item()
        bonus += weight * entropy[t].item()
    assert losses["loss/policy"].item() == pytest.approx(policy, rel=1e-4)
    assert losses["loss/kl"].item() == pytest.approx(kl, rel=1e-4)
    assert losses["loss/total"].item() == pytest.approx(policy + 0.5 * kl - 0.25 * bonus, rel=1e-4)


def test_the_compute_type_follows_the_device_unless_it_is_given() -> None:
    assert compute_dtype(ModelConfig(), "cpu") == torch.float32
    assert compute_dtype(ModelConfig(), "cuda") == torch.bfloat16
    assert compute_dtype(ModelConfig(dtype="bfloat16"), "cpu") == torch.bfloat16


@pytest.mark.parametrize("path", ["no/such/folder", "/no/such/folder"])
def test_a_missing_model_folder_is_named(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match=f"model.path='{path}' is no local folder and no reachable hub model"):
        load_causal_lm_config(path)


def test_a_folder_without_a_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no usable config\.json"):
        load_causal_lm_config(str(tmp_path))


def bad_models_and_bfloat16(mesh: DeviceMesh, folder: Path) -> dict[str, str | float]:
    """Messages of models that must be refused; then the loss of one step in bfloat16 and in float32."""
    answers: dict[str, str | float] = {}
    edits = {"softcapping": {"final_logit_softcapping": 30.0}, "no weights": {}, "too few weights": {}}
    for name, edit in edits.items():
        path = save_tiny_model(folder / name, tied=True)
        config_file = Path(path) / "config.json"
        config = json.loads(config_file.read_text()) | edit
        if name == "no weights":
            (Path(path) / "model.safetensors").unlink()
        if name == "too few weights":
            config |= {"num_hidden_layers": 3, "layer_types": ["full_attention"] * 3}
        config_file.write_text(json.dumps(config))
        try:
            load_policy(ModelConfig(path=path), mesh)
        except (ConfigError, DataError) as error:
            answers[name] = f"{type(error).__name__}: {error}"
    path = save_tiny_model(folder / "good", tied=False)
    for dtype in ("bfloat16", "float32"):
        learner = Learner(tiny_config(path, f"model.dtype={dtype}", "algorithm.kl_coef=0.1"), mesh, 1)
        metrics = learner.train(random_batch(2))
        answers[dtype] = metrics["loss/total"]  # type: ignore[assignment]
        answers[f"{dtype} master"] = str(next(iter(learner.policy.parameters())).dtype)
    return answers


def test_unusable_models_are_refused_and_bfloat16_is_close_to_float32(tmp_path: Path) -> None:
    answers = run_ranks(1, bad_models_and_bfloat16, tmp_path)[0]
    assert "ConfigError" in answers["softcapping"]
    assert "soft_cap=30.0" in answers["softcapping"]
    assert "DataError" in answers["no weights"]
    assert "cannot be loaded" in answers["no weights"]
    assert "DataError" in answers["too few weights"]
    assert "lacks the weights of 11 parameters" in answers["too few weights"]
    assert answers["bfloat16"] == pytest.approx(answers["float32"], abs=0.05)
    assert answers["bfloat16"] != answers["float32"]
    assert answers["bfloat16 master"] == "torch.float32"
