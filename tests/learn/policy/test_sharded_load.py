"""What each rank reads for itself is, put together, what transformers loads."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from asyncrl.config.schema import ModelConfig
from asyncrl.learn.policy.model import load_policy
from tests.support.families import FAMILIES, save_family
from tests.support.learn import run_ranks, save_tiny_model

pytestmark = pytest.mark.system

NUM_RANKS = 3
"""No size is divisible by it: the last rank has fewer rows, and of 4 experts none."""


def compare_all(mesh: DeviceMesh, paths: dict[str, str]) -> dict[str, Any]:
    messages: list[str] = []
    logger = logging.getLogger("asyncrl.learn.policy.sharded_load")
    logger.addFilter(lambda record: not messages.append(record.getMessage()))
    answers = {}
    for name, path in paths.items():
        messages.clear()
        answers[name] = (differences(mesh, path), list(messages))
    return answers


def differences(mesh: DeviceMesh, path: str) -> list[str]:
    """What differs from transformers' own load, by name."""
    policy = load_policy(ModelConfig(path=path), mesh)
    whole = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    found = []
    mine, expected = dict(policy.hf_parameters()), dict(whole.named_parameters())
    for name in mine.keys() | expected.keys():
        if name not in mine or name not in expected:
            found.append(f"{name} is in one of them alone")
            continue
        parameter = mine[name]
        assert isinstance(parameter, DTensor)
        value = parameter.full_tensor()
        if value.dtype != torch.float32 or not parameter.requires_grad or not torch.equal(value, expected[name]):
            found.append(name)
    buffers = dict(policy.hf.named_buffers())
    for name, buffer in whole.named_buffers():
        if buffers[name].dtype != buffer.dtype or not torch.equal(buffers[name], buffer):
            found.append(name)
    ties = [model.get_output_embeddings().weight is model.get_input_embeddings().weight for model in (policy.hf, whole)]
    return found + (["ties"] if ties[0] != ties[1] else [])


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder: Path = tmp_path_factory.mktemp("models")
    paths = {family: save_family(folder / family[:5] / str(i), family) for i, family in enumerate(FAMILIES)}
    paths["qwen3"] = save_tiny_model(folder / "qwen3", tied=True)
    AutoModelForCausalLM.from_pretrained(paths["qwen3"], dtype=torch.bfloat16).save_pretrained(folder / "bfloat16")
    paths["saved in bfloat16"] = str(folder / "bfloat16")
    paths["6 experts"] = save_family(folder / "experts", "qwen3 moe", num_experts=6)
    AutoModelForCausalLM.from_pretrained(paths["6 experts"]).save_pretrained(folder / "pieces", max_shard_size="20KB")
    paths["in several files"] = str(folder / "pieces")
    return run_ranks(NUM_RANKS, compare_all, paths)[0]


def test_every_family_is_loaded_as_transformers_loads_it(answers: dict[str, Any]) -> None:
    assert {name: found for name, (found, _) in answers.items() if found} == {}


def test_only_a_rank_without_an_expert_makes_all_read_the_whole_model(answers: dict[str, Any]) -> None:
    warnings = {name: messages for name, (_, messages) in answers.items() if messages}
    assert warnings.keys() == {"qwen3 moe"}
    assert "too few experts (4) for each of 3 ranks to have one" in warnings["qwen3 moe"][0]
