"""`generator.engine`: vLLM, or a class of the user's own, as the stand-in of `bench/chaos/chaos.py` is."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from asyncrl.config.schema import GeneratorConfig
from asyncrl.errors import ConfigError, RunError
from asyncrl.generate.engines.base import EngineSpec
from asyncrl.generate.engines.registry import engine_class
from asyncrl.publish.next_parameters import NextParameters
from asyncrl.publish.plan import whole_pieces
from asyncrl.publish.receiver import whole_slices
from asyncrl.types import Completion
from bench.standin.engine import StandInEngine
from tests.support.models import random_qwen3
from tests.support.publish import (
    PROMPT,
    TOLERANCE,
    assert_every_token_is_of_its_version,
    largest_difference,
    perturbed,
    sampling,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_qwen3(tmp_path_factory.mktemp("models") / "qwen3", tied=True)


def stand_in(folder: Path) -> StandInEngine:
    spec = EngineSpec(
        model_path=str(folder),
        dtype="float32",
        max_model_len=64,
        max_num_sequences=16,
        seed=0,
        on_cpu=True,
        trust_remote_code=False,
    )
    return StandInEngine(spec, GeneratorConfig())


def test_an_engine_of_ones_own_is_imported_from_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "engine_of_mine.py").write_text("from bench.standin.engine import StandInEngine as Mine\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert engine_class("engine_of_mine:Mine") is StandInEngine


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("tgi", "unknown Class 'tgi'; use vllm, sglang, module:Class or file.py:Class"),
        ("no_such_module:Engine", "cannot import 'no_such_module'"),
        ("json:no_such_attribute", "module 'json' has no 'no_such_attribute'"),
        ("math:pi", "is a float, not a Class"),
        (
            "json:JSONDecoder",
            "lacks dead, warm_up, sample, join_group, leave_group, stage, pause, update, resume, shut",
        ),
    ],
)
def test_an_engine_that_cannot_be_used_names_the_key(name, reason):
    with pytest.raises(ConfigError, match=rf"generator\.engine: .*{reason}"):
        engine_class(name)


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("def stage(self): ...", "stage must be `async def`"),
        ("async def shutdown(self): ...", "shutdown must not be `async def`"),
        ("async def pause(self): ...", r"pause is called with \(self, recompute_kv\): too many positional arguments"),
    ],
)
def test_an_engine_whose_method_is_called_otherwise_is_told_which(tmp_path, monkeypatch, method, reason):
    file = tmp_path / "engine.py"
    file.write_text(f"from bench.standin.engine import StandInEngine\nclass Mine(StandInEngine):\n    {method}\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(ConfigError, match=rf"generator\.engine: .*Mine': {reason}"):
        engine_class(f"{file}:Mine")


@pytest.mark.parametrize("prompt", [[], [0] * 65, [0, 1 << 20], [-1]])
def test_the_stand_in_refuses_a_prompt_that_it_cannot_answer(folder, prompt):
    async def ask() -> None:
        await stand_in(folder).sample("bad", prompt, sampling(1, 4))

    with pytest.raises(RunError):
        asyncio.run(ask())


def test_the_stand_in_drops_what_is_cancelled_and_answers_the_rest(folder):
    async def sample() -> tuple[bool, Completion]:
        engine = stand_in(folder)
        engine._may_step.clear()  # until one of the two is cancelled
        one, other = (asyncio.create_task(engine.sample(name, PROMPT, sampling(1, 4, 0))) for name in "ab")
        await asyncio.sleep(0)
        one.cancel()
        await asyncio.wait([one])
        engine._may_step.set()
        return one.cancelled(), (await other)[0]

    was_cancelled, completion = asyncio.run(sample())
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert was_cancelled
    assert largest_difference(model, [completion]) < TOLERANCE


def test_the_stand_ins_logprobs_are_its_models_and_a_seed_gives_the_same_tokens_in_any_company(folder):
    async def sample(seeds: list[int]) -> list[list[Completion]]:
        engine = stand_in(folder)
        requests = (engine.sample(f"{seed}", PROMPT, sampling(4, 6 + seed, seed)) for seed in seeds)
        return list(await asyncio.gather(*requests))

    together, alone = asyncio.run(sample([0, 1, 2])), asyncio.run(sample([1]))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for completions in together:
        assert largest_difference(model, completions) < TOLERANCE
    assert [one.token_ids.tolist() for one in together[1]] == [one.token_ids.tolist() for one in alone[0]]
    for one in together[2]:
        ended = one.token_ids[-1] == model.config.eos_token_id
        assert one.finish_reason == ("stop" if ended else "length")
        assert len(one.token_ids) == 8 or (ended and len(one.token_ids) < 8)


def test_the_stand_in_switches_between_two_tokens_and_each_carries_the_version_that_sampled_it(folder):
    first, second = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for _ in range(2))
    weights = perturbed(second)

    async def sample_over_a_switch() -> list[Completion]:
        engine = stand_in(folder)
        await engine.warm_up()
        await engine.resume(0)
        sampled = asyncio.create_task(engine.sample("long", PROMPT, sampling(16, 50)))
        while engine._batch is None or len(engine._batch._versions) < 3 or engine._batch.done:
            await asyncio.sleep(0)
        await engine.pause(recompute_kv=True)
        pieces, serving = whole_pieces(weights), dict(engine._model.named_parameters())
        parameters = NextParameters(serving, whole_slices(weights), pieces, torch.device("cpu"), False, None)
        for piece in pieces:
            parameters.put(piece, weights[piece.name])
        parameters.switch()
        parameters.verify()
        assert not sampled.done()
        await engine.resume(1)
        return await sampled

    completions = asyncio.run(sample_over_a_switch())
    assert {version for one in completions for version in one.versions.tolist()} == {0, 1}
    assert_every_token_is_of_its_version(completions, {0: first, 1: second})
