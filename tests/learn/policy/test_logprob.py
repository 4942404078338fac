"""The output head as one function, against logits computed whole in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import asyncrl.learn.policy.logit_chunks as logit_chunks
import asyncrl.learn.policy.logprob as logprob
from asyncrl.config.logit_transform import LogitTransform
from asyncrl.learn.policy.logprob import token_logprobs

TRANSFORMS = [
    LogitTransform(),
    LogitTransform(soft_cap=3.0),
    LogitTransform(scale=0.25),
    LogitTransform(scale=1.5, soft_cap=2.0),
]
NUM_TOKENS, HIDDEN, VOCABULARY = 13, 8, 11


def whole(
    hidden: Tensor,
    head: nn.Linear,
    targets: Tensor,
    temperature: float,
    transform: LogitTransform,
    left: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`left` [T, V] bool: the tokens that top-k and top-p left."""
    logits = head(hidden)
    if transform.soft_cap is not None:
        logits = torch.tanh(logits / transform.soft_cap) * transform.soft_cap
    logits = transform.scale * logits / temperature
    if left is None:
        distribution = torch.distributions.Categorical(logits=logits)
        return distribution.log_prob(targets), distribution.entropy()
    each = [torch.distributions.Categorical(logits=row[kept]) for row, kept in zip(logits, left, strict=True)]
    places = left.cumsum(1).gather(1, targets[:, None])[:, 0] - 1
    chosen = [one.log_prob(place) for one, place in zip(each, places, strict=True)]
    return torch.stack(chosen), torch.stack([one.entropy() for one in each])


def supports_of(left: Tensor, targets: Tensor) -> Tensor:
    """[T, K] as the head takes them."""
    rows = [
        [target, *(token for token in row.nonzero()[:, 0].tolist() if token != target)]
        for row, target in zip(left, targets.tolist(), strict=True)
    ]
    most = max(map(len, rows))
    return torch.tensor([row + [-1] * (most - len(row)) for row in rows], dtype=torch.int32)


def tensors(seed: int, dtype: torch.dtype, *, bias: bool) -> tuple[Tensor, nn.Linear, Tensor, Tensor]:
    """Hidden states, head, targets, and a weight for each output of each token."""
    torch.manual_seed(seed)
    hidden, targets = torch.randn(NUM_TOKENS, HIDDEN), torch.randint(VOCABULARY, (NUM_TOKENS,))
    head, weights = nn.Linear(HIDDEN, VOCABULARY, bias=bias), torch.randn(2, NUM_TOKENS)
    return hidden.to(dtype).requires_grad_(), head.to(dtype), targets, weights.to(dtype)


@given(
    st.integers(0, 10**6),
    st.sampled_from(TRANSFORMS),
    st.sampled_from([0.5, 1.0]),
    st.booleans(),
    st.sampled_from([(1, 11), (4, 3), (13, 1), (5, 11), (1000, 1000)]),
    st.sampled_from(["logprob", "entropy", "both"]),
    st.booleans(),
)
def test_outputs_and_gradients_equal_the_whole_logits_in_chunks_of_any_size_and_over_the_tokens_that_top_k_left(
    seed: int,
    transform: LogitTransform,
    temperature: float,
    bias: bool,
    chunk: tuple[int, int],
    used: str,
    is_cut: bool,
) -> None:
    hidden, head, targets, weights = tensors(seed, torch.float32, bias=bias)
    left, supports = None, None
    if is_cut:
        left = (torch.rand(NUM_TOKENS, VOCABULARY) < 0.4).scatter(1, targets[:, None], True)
        supports = supports_of(left, targets)
    exact_hidden, exact_head, _, _ = tensors(seed, torch.float64, bias=bias)
    exact_head.load_state_dict(head.state_dict())
    exact_hidden.data.copy_(hidden.data)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in zip(("CPU_CHUNK_TOKENS", "LEAST_COLUMNS"), chunk, strict=True):
            patch.setattr(logit_chunks, name, value)
        patch.setattr(logit_chunks, "CPU_CHUNK_BYTES", 1)
        outputs = token_logprobs(hidden, head, targets, temperature, transform, supports)
        expected = whole(exact_hidden, exact_head, targets, temperature, transform, left)
        for values in (outputs, expected):
            parts = weights.to(values[0].dtype) * torch.stack(values)
            {"logprob": parts[0], "entropy": parts[1], "both": parts}[used].sum().backward()
    for value, exact in zip(outputs, expected, strict=True):
        torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=1e-5)
    leaves = [(hidden, exact_hidden), *zip(head.parameters(), exact_head.parameters(), strict=True)]
    for leaf, exact_leaf in leaves:
        assert leaf.grad is not None
        torch.testing.assert_close(leaf.grad.double(), exact_leaf.grad, rtol=1e-5, atol=1e-5)


def test_a_tied_weight_gets_the_gradient_of_both_of_its_uses() -> None:
    hidden, head, targets, _ = tensors(0, torch.float32, bias=False)
    ids = torch.randint(VOCABULARY, (NUM_TOKENS,))
    gradients = []
    for function in (token_logprobs, whole):
        head.zero_grad()
        logprobs, _ = function(hidden + nn.functional.embedding(ids, head.weight), head, targets, 1.0, LogitTransform())
        logprobs.sum().backward()
        assert head.weight.grad is not None
        gradients.append(head.weight.grad.clone())
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)


def head_gradient_error(chunk_tokens: int) -> float:
    """Of a bfloat16 head, relative to float64 on the same values."""
    torch.manual_seed(0)
    hidden, targets = torch.randn(600, 64).bfloat16(), torch.randint(32, (600,))
    head = nn.Linear(64, 32, bias=False).bfloat16()
    exact = nn.Linear(64, 32, bias=False).double()
    exact.load_state_dict(head.state_dict())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logit_chunks, "CPU_CHUNK_TOKENS", chunk_tokens)
        token_logprobs(hidden, head, targets, 1.0, LogitTransform())[0].sum().backward()
    whole(hidden.double(), exact, targets, 1.0, LogitTransform())[0].sum().backward()
    assert head.weight.grad is not None
    assert exact.weight.grad is not None
    return ((head.weight.grad.double() - exact.weight.grad).norm() / exact.weight.grad.norm()).item()


def test_in_bfloat16_many_chunks_are_as_exact_as_one() -> None:
    assert head_gradient_error(8) < 1.5 * head_gradient_error(600)  # 0.25 % and 0.20 %; added up in bfloat16, 1.07 %
    assert head_gradient_error(600) < 0.01


@pytest.mark.parametrize("is_cut", [False, True])
def test_a_float32_head_does_not_round_the_logits_of_bfloat16_factors(is_cut: bool) -> None:
    torch.manual_seed(0)
    hidden, head = torch.randn(200, 64).bfloat16().requires_grad_(), nn.Linear(64, 32).bfloat16()
    targets = torch.randint(32, (200,))
    left = torch.rand(200, 32) < 0.5 if is_cut else torch.ones(200, 32, dtype=torch.bool)
    left.scatter_(1, targets[:, None], True)
    exact_hidden, exact_head = hidden.detach().double().requires_grad_(), nn.Linear(64, 32).double()
    exact_head.load_state_dict(head.state_dict())
    expected = torch.stack(whole(exact_hidden, exact_head, targets, 1.0, LogitTransform(), left))
    expected[0].sum().backward()
    errors = []
    for float32_products in (True, False):
        hidden.grad = head.weight.grad = None
        supports = supports_of(left, targets) if is_cut else None
        found = torch.stack(
            token_logprobs(hidden, head, targets, 1.0, LogitTransform(), supports, float32_products=float32_products)
        )
        found[0].sum().backward()
        assert hidden.grad is not None
        torch.testing.assert_close(hidden.grad.double(), exact_hidden.grad, rtol=0.02, atol=0.02)
        errors.append((found.double() - expected).abs().max().item())
    assert errors[0] < 1e-5
    assert errors[1] > 1e-3


def test_compiled_the_head_changes_no_value_and_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprob, "COMPILER", "aot_eager")  # all but the code generator
    monkeypatch.setattr(logit_chunks, "CPU_CHUNK_TOKENS", 5)
    monkeypatch.setattr(logit_chunks, "LEAST_COLUMNS", 4)
    monkeypatch.setattr(logit_chunks, "CPU_CHUNK_BYTES", 1)
    logprob._compiled.cache_clear()
    answers = []
    for compiled in (False, True):
        hidden, head, targets, weights = tensors(0, torch.float32, bias=True)
        outputs = torch.stack(token_logprobs(hidden, head, targets, 0.7, TRANSFORMS[3], compiled=compiled))
        (weights * outputs).sum().backward()
        answers.append([outputs.detach(), hidden.grad, head.weight.grad, head.bias.grad])
    logprob._compiled.cache_clear()
    for plain, through_the_compiler in zip(*answers, strict=True):
        torch.testing.assert_close(plain, through_the_compiler, rtol=1e-6, atol=1e-6)
