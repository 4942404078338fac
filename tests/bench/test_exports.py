"""A wrong logprob, and one that is no number, is seen; only vLLM's known refusal is no failure."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from bench.publish.exports import NO_TRITON, TOLERANCE, Sampled, is_wrong, largest_difference
from tests.support.families import save_family

PROMPT, TOKENS = [5, 9, 3], [40, 7, 11]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(save_family(tmp_path_factory.mktemp("model"), "llama tied"))


@pytest.fixture(scope="module")
def sampled(folder: Path) -> Sampled:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    logprobs = []
    for end, token in enumerate(TOKENS):
        with torch.no_grad():
            logits = model(torch.tensor([PROMPT + TOKENS[:end]])).logits[0, -1]
        logprobs.append(logits.log_softmax(-1)[token].item())
    return Sampled(PROMPT, TOKENS, logprobs)


def test_the_logprobs_of_the_sampled_tokens_are_compared(folder: Path, sampled: Sampled) -> None:
    assert largest_difference(folder, [sampled]) < TOLERANCE
    for place in range(3):
        logprobs = [logprob + 0.01 * (place == at) for at, logprob in enumerate(sampled.logprobs)]
        wrong = [sampled, replace(sampled, logprobs=logprobs)]
        assert largest_difference(folder, wrong) == pytest.approx(0.01, rel=1e-3)


def test_a_difference_that_is_no_number_is_wrong(folder: Path, sampled: Sampled) -> None:
    difference = largest_difference(folder, [replace(sampled, logprobs=[math.nan, -1.0, -1.0]), sampled])
    assert is_wrong(difference)


def test_a_refusal_is_wrong_unless_it_is_the_known_one() -> None:
    assert is_wrong(2 * TOLERANCE)
    assert is_wrong("ValueError: no such layer")
    assert not is_wrong(f"AttributeError: {NO_TRITON} 'float32'")
    assert not is_wrong(TOLERANCE / 2)
