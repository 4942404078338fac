"""Families of models: logprobs, entropies and gradients on two ranks, against logits by transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.distributed.device_mesh import DeviceMesh
from transformers import AutoModelForCausalLM, Gemma2Config, Lfm2Config, LlamaConfig

from asyncrl.config.schema import ModelConfig
from asyncrl.errors import ConfigError
from asyncrl.learn.policy import row_attention, varlen_attention
from asyncrl.learn.policy.attention import attention_of
from asyncrl.learn.policy.model import PolicyModel, load_policy
from asyncrl.learn.policy.row_attention import Rows
from asyncrl.learn.policy.varlen_attention import Segments
from asyncrl.learn.update.packing import Layout
from tests.support.families import FAMILIES, save_family
from tests.support.learn import run_ranks

TEMPERATURE = 0.7
ROWS = torch.tensor([[5, 9, 3, 40, 7, 7, 11, 2], [1, 30, 30, 4, 21, 8, 0, 0]])
LENGTHS = (8, 6)
WEIGHTS = torch.linspace(-1, 1, 2 * (sum(LENGTHS) - 2)).view(2, -1)
"""Of the logprob and the entropy of each token in the loss whose gradient is compared."""

PACKED = [family for family in FAMILIES if "soft cap" not in family]
"""Families whose attention torch's kernel for variable lengths can do."""

IN_ROWS = [family for family in PACKED if family not in ("mistral", "gemma3")]  # some of whose layers have windows
"""Families of whose attention a mask alone decides who sees whom."""

Answer = tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]


def of_transformers(path: str) -> Answer:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    logprobs, entropies = [], []
    for row, length in zip(ROWS, LENGTHS, strict=True):
        logits = model(row[None, :length]).logits[0, :-1] / TEMPERATURE
        distribution = torch.distributions.Categorical(logits=logits)
        logprobs.append(distribution.log_prob(row[1:length]))
        entropies.append(distribution.entropy())
    outputs = torch.cat(logprobs), torch.cat(entropies)
    (WEIGHTS * torch.stack(outputs)).sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return outputs[0].detach(), outputs[1].detach(), gradients


def of_policies(mesh: DeviceMesh, paths: dict[str, str]) -> dict[str, Answer]:
    """By family, and for the other layouts by `packed FAMILY` and `shared FAMILY`."""
    answers = {family: of_policy(mesh, path, "padded") for family, path in paths.items()}
    answers |= {f"packed {family}": of_policy(mesh, paths[family], "packed") for family in PACKED}
    return answers | {f"shared {family}": of_policy(mesh, paths[family], "shared") for family in IN_ROWS}


def of_policy(mesh: DeviceMesh, path: str, layout: Layout) -> Answer:
    """Both ranks have the same tokens, so that the mean of their gradients is the gradient."""
    attention = varlen_attention.NAME if layout == "packed" else "auto"
    policy = load_policy(ModelConfig(path=path, attention=attention), mesh)
    indices = torch.cat([torch.arange(7), torch.arange(8, 13)])
    targets = torch.cat([ROWS[0, 1:8], ROWS[1, 1:6]])
    tokens, positions = torch.cat([ROWS[0], ROWS[1, :6]])[None], torch.cat([torch.arange(8), torch.arange(6)])[None]
    if layout == "shared":
        assert policy.takes_rows
        place_of = torch.arange(14)
        rows = Rows(torch.cat([place_of, torch.zeros(2, dtype=torch.int64)]), place_of)
        seen = torch.ones(2, 1, 8, 8, dtype=torch.bool).tril()
        seen[1, :, 6:, :6] = False  # padding sees padding
        logprobs, entropy = policy(tokens, positions, seen, indices, targets, TEMPERATURE, None, rows)
    elif layout == "packed":
        assert policy.packs_sequences
        segments = Segments(torch.tensor([0, 8, 14], dtype=torch.int32), 8)
        logprobs, entropy = policy(tokens, positions, None, indices, targets, TEMPERATURE, segments)
    else:
        mask = torch.arange(8) < torch.tensor(LENGTHS)[:, None]
        positions = torch.arange(8).expand(2, 8)
        logprobs, entropy = policy(ROWS, positions, mask.long(), indices, targets, TEMPERATURE)
    (WEIGHTS * torch.stack([logprobs, entropy])).sum().backward()
    gradients = {
        name: parameter.grad.full_tensor()  # type: ignore[attr-defined]
        for name, parameter in policy.hf_parameters()
        if parameter.grad is not None
    }
    return logprobs.detach(), entropy.detach(), gradients


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {family: save_family(tmp_path_factory.mktemp("model"), family) for family in FAMILIES}


@pytest.fixture(scope="module")
def answers(paths: dict[str, str]) -> dict[str, Answer]:
    return run_ranks(2, of_policies, paths)[0]


@pytest.mark.parametrize(
    "family", [*FAMILIES, *(f"packed {family}" for family in PACKED), *(f"shared {family}" for family in IN_ROWS)]
)
def test_every_family_has_transformers_logprobs_entropies_and_gradients(
    family: str, paths: dict[str, str], answers: dict[str, Answer]
) -> None:
    logprobs, entropy, gradients = answers[family]
    expected_logprobs, expected_entropy, expected_gradients = of_transformers(
        paths[family.removeprefix("packed ").removeprefix("shared ")]
    )
    torch.testing.assert_close(logprobs, expected_logprobs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropy, expected_entropy, rtol=1e-5, atol=1e-5)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def test_sdpa_is_not_used_where_it_would_leave_out_a_cap_of_the_attention_scores() -> None:
    assert attention_of(ModelConfig(), Gemma2Config(), "cpu") == "eager"
    assert attention_of(ModelConfig(), LlamaConfig(), "cpu") == "sdpa"
    for attention in ("sdpa", row_attention.NAME):
        with pytest.raises(ConfigError, match="whose attn_logit_softcapping it would leave out"):
            attention_of(ModelConfig(attention=attention), Gemma2Config(), "cpu")


def test_a_row_is_not_packed_where_layers_mix_tokens_outside_of_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    hybrid = Lfm2Config(num_hidden_layers=2, layer_types=["conv", "full_attention"])
    with pytest.raises(ConfigError, match="layers of kind conv would mix a row's sequences"):
        attention_of(ModelConfig(attention=varlen_attention.NAME), hybrid, "cpu")
    monkeypatch.setattr(varlen_attention, "runs_on", lambda device, head_dim: True)
    packing = ModelConfig(dtype="bfloat16")
    assert attention_of(packing, LlamaConfig(), "cpu") == varlen_attention.NAME
    assert attention_of(packing, hybrid, "cpu") == "sdpa"


def test_completions_share_no_row_where_a_layer_has_a_window(tmp_path: Path) -> None:
    for family, takes_rows in (("mistral", False), ("gemma3", False), ("llama tied", True)):
        path = save_family(tmp_path / family, family)
        model = AutoModelForCausalLM.from_pretrained(path, attn_implementation=row_attention.NAME)
        assert PolicyModel(model).takes_rows == takes_rows
