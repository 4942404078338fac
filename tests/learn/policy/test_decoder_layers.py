"""What checkpointing computes again and what it keeps, counted operator by operator; results stay as they are."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, Qwen3Config

from asyncrl.cluster.activations import kept_values
from asyncrl.config.model_shape import read_model_shape
from asyncrl.learn.policy import decoder_layers, row_attention
from asyncrl.learn.policy.decoder_layers import KEPT, checkpoint_layers, compile_layers
from asyncrl.learn.update.packing import branch_mask, rows_of_lengths
from tests.support.families import FAMILIES, SIZES

CONFIGS = {
    "qwen3": Qwen3Config(**SIZES),
    "llama": LlamaConfig(**SIZES),
    "gemma2": FAMILIES["gemma2, soft cap"][0](**(SIZES | FAMILIES["gemma2, soft cap"][1])),
}
TOKENS = torch.tensor([[5, 9, 3, 40, 7, 7, 11, 2], [1, 30, 30, 4, 21, 8, 2, 6]])


class Operators(TorchDispatchMode):
    """Counts calls, and the values that they answer."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[Any] = Counter()
        self.values: Counter[Any] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = func(*args, **(kwargs or {}))
        self.calls[func] += 1
        first = answer[0] if isinstance(answer, tuple) else answer
        self.values[func] += first.numel() if isinstance(first, torch.Tensor) else 0
        return answer


def decoder(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    attention = "eager" if family == "gemma2" else "sdpa"
    model = AutoModelForCausalLM.from_config(CONFIGS[family], dtype=torch.float32, attn_implementation=attention)
    return model.train()


def run(model: PreTrainedModel) -> tuple[Operators, Operators, dict[str, torch.Tensor]]:
    """Operators of the forward and the backward pass, and the gradients."""
    forward, backward = Operators(), Operators()
    with forward:
        loss = model.get_decoder()(TOKENS, use_cache=False).last_hidden_state.sin().sum()
    with backward:
        loss.backward()
    named = model.named_parameters()
    return forward, backward, {name: value.grad for name, value in named if value.grad is not None}


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("keeps", KEPT)
def test_checkpointing_changes_no_gradient_and_computes_again_only_what_is_not_kept(family: str, keeps: str) -> None:
    plain_forward, plain_backward, expected = run(decoder(family))
    model = decoder(family)
    checkpoint_layers(model, keeps)
    forward, backward, gradients = run(model)
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=0, atol=0, msg=name)
    again = backward.calls - plain_backward.calls
    for operator in KEPT["matmuls"]:
        assert forward.calls[operator] == plain_forward.calls[operator]
        num_calls = plain_forward.calls[operator]
        # torch stops where nothing more is asked for, which may leave a layer's last product out
        due = [0] if operator in KEPT[keeps] else [num_calls, max(0, num_calls - model.config.num_hidden_layers)]
        assert again[operator] in due, f"{operator} is computed {again[operator]} times again"


@pytest.mark.parametrize("keeps", KEPT)
def test_the_estimate_of_what_is_kept_counts_the_values_of_those_operators(keeps: str, tmp_path: Path) -> None:
    model = decoder("qwen3")
    model.save_pretrained(tmp_path)
    forward, _, _ = run(model)
    kept = sum(forward.values[operator] for operator in KEPT[keeps])
    num_layers, hidden_size = model.config.num_hidden_layers, model.config.hidden_size
    per_token = kept / num_layers / TOKENS.numel()
    assert kept_values(read_model_shape(str(tmp_path)), keeps)[0] == hidden_size + per_token


@pytest.mark.parametrize(("family", "keeps"), [("qwen3", "attention"), ("gemma2", None)])
def test_layers_that_are_compiled_share_one_graph_for_any_lengths_and_change_no_gradient(
    family: str, keeps: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a code generator, so bit for bit; with one a gradient differs by rounding (docs/models.md)."""
    monkeypatch.setattr(decoder_layers, "COMPILER", "aot_eager")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    expected, model = decoder(family), decoder(family)
    if keeps is not None:
        checkpoint_layers(model, keeps)
    compile_layers(model)
    for tokens in (TOKENS, TOKENS[:, :5], TOKENS[:, :7]):
        for each in (expected, model):
            each.zero_grad()
            each.get_decoder()(tokens, use_cache=False).last_hidden_state.sin().sum().backward()
        for (name, parameter), compiled in zip(expected.named_parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(compiled.grad, parameter.grad, rtol=0, atol=0, msg=name)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_compiled_layers_share_one_graph_for_any_rows_and_change_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """As above, where attention alone pads rows."""
    monkeypatch.setattr(decoder_layers, "COMPILER", "aot_eager")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    expected, model = decoder("qwen3"), decoder("qwen3")
    for each in (expected, model):
        each.set_attn_implementation(row_attention.NAME)
    compile_layers(model)
    for lengths in ([4, 3], [5, 2, 6], [2, 2, 4, 3]):
        is_token = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        mask, rows = branch_mask(is_token.long() - 1), rows_of_lengths(np.array(lengths))
        tokens = TOKENS.flatten()[None, : sum(lengths)]
        for each in (expected, model):
            each.zero_grad()
            output = each.get_decoder()(tokens, attention_mask=mask, use_cache=False, rows=rows)
            output.last_hidden_state.sin().sum().backward()
        for (name, parameter), compiled in zip(expected.named_parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(compiled.grad, parameter.grad, rtol=0, atol=0, msg=name)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
