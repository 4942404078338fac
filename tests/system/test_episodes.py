"""Episodes on the real vLLM: what is trained is what was sampled, to the last token, also across a publish."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from asyncrl.config.algorithm import AlgorithmConfig
from asyncrl.config.schema import Config, PublishConfig
from asyncrl.environments.base import Action, Row, Step
from asyncrl.environments.pool import EnvironmentPool
from asyncrl.generate.episodes import Episodes
from asyncrl.generate.finished_completions import Finished
from asyncrl.generate.observation_tokens import ObservationTokens
from asyncrl.learn.update.mini_batches import mini_batches
from asyncrl.publish.session import PublishSession
from asyncrl.transport.messages.rollouts import LeaseGrant
from asyncrl.transport.sockets import Network
from asyncrl.transport.wire import group_from_wire, group_to_wire
from asyncrl.types import Batch, Group
from tests.support.fresh import run_fresh
from tests.support.models import random_qwen3
from tests.support.publish import PROMPT, TOLERANCE, metas_of, perturbed
from tests.system.test_publish import serving

GROUP_SIZE = 6
STEP = 3


class Gate:
    """Says `+=`, and holds each second turn back until the file is there; another file has a byte for each it holds."""

    def __init__(self, file: str) -> None:
        self._file = Path(file)
        self._num_steps = 0

    async def reset(self, row: Row) -> None: ...

    async def step(self, action: Action) -> Step:
        self._num_steps += 1
        if self._num_steps == 2:
            with self._file.with_suffix(".held").open("a") as held:
                held.write(".")
            while not self._file.exists():
                await asyncio.sleep(0.01)
        return Step("+=", reward=float(len(action.token_ids)))


async def all_held(held: Path) -> None:
    async with asyncio.timeout(60):
        while not held.exists() or len(held.read_text()) < GROUP_SIZE:
            await asyncio.sleep(0.01)


async def play(folder: Path, gate: Path) -> tuple[Group, list[int], dict[int, float]]:
    """The group, its trained tokens, and by version the largest difference of their logprobs from transformers'."""
    config = Config()
    config.generator.max_tokens = 50
    config.environment.name, config.environment.args = f"{__name__}:Gate", {"file": str(gate)}
    config.environment.max_turns, config.environment.max_turn_tokens, config.environment.time_limit_s = 4, 6, 60.0
    config.environment.num_workers = GROUP_SIZE  # a process for each episode that is held
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    pool = EnvironmentPool(config.environment)
    try:
        async with serving(folder, 1) as (engine, member):
            publishing = PublishConfig("broadcast", "gloo", timeout_s=60, kv_cache="recompute")
            session = await asyncio.to_thread(
                PublishSession, "learner-0", Network(), [member], publishing, metas_of(model)
            )
            tokens = ObservationTokens(AutoTokenizer.from_pretrained(folder))
            grant = LeaseGrant(
                lease_id=1,
                index=7,
                kind="train",
                row=70,
                token_ids=PROMPT,
                text="",
                answer="",
                num_samples=GROUP_SIZE,
                temperature=1.0,
                seed=11,
                timeout_s=120.0,
            )
            await asyncio.to_thread(session.send, 0, perturbed(model))
            first = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            first.load_state_dict(model.state_dict())
            playing = asyncio.create_task(Episodes(engine, pool, tokens, config).roll_out(grant, Finished()))
            await all_held(gate.with_suffix(".held"))
            await asyncio.to_thread(session.send, 1, perturbed(model))  # every episode is in its midst
            gate.touch()
            group, failures = await playing
            session.close()
    finally:
        pool.close()
    assert failures == []
    trained, differences = compare(group, {0: first, 1: model})
    return group, trained, differences


def compare(group: Group, policies: dict[int, PreTrainedModel]) -> tuple[list[int], dict[int, float]]:
    """Through the wire and into a mini-batch, as the learner takes it."""
    header, frames = group_to_wire(group)
    arrived = group_from_wire(header, [bytes(frame) for frame in frames])
    (mini_batch,) = mini_batches(Batch(STEP, [arrived]), AlgorithmConfig(), 9, 1, 50)
    actions, differences = mini_batch.actions, dict.fromkeys(policies, 0.0)
    for i, (prompt, completion) in enumerate(zip(mini_batch.prompts, mini_batch.completions, strict=True)):
        mine = slice(mini_batch.offsets[i], mini_batch.offsets[i + 1])
        before = len(prompt) - 1 + mini_batch.positions[mine]
        for version, policy in policies.items():
            with torch.no_grad():
                logits = policy(torch.tensor([[*prompt, *completion]])).logits[0]
            logprobs = logits.log_softmax(-1)[before].gather(1, actions.targets[mine, None])[:, 0]
            errors = (logprobs - actions.behaviour_logprobs[mine])[actions.lags[mine] == STEP - version].abs()
            assert len(errors), f"no token of version {version} in completion {i}"
            differences[version] = max(differences[version], errors.max().item())
    return actions.targets[actions.mask].tolist(), differences


def played(folder: Path, gate: Path) -> tuple[Group, list[int], dict[int, float]]:
    return asyncio.run(play(folder, gate))


@pytest.mark.system
def test_what_is_trained_of_an_episode_is_what_each_version_sampled_across_a_publish_in_its_midst(
    tmp_path: Path,
) -> None:
    folder = random_qwen3(tmp_path / "model", tied=True)
    group, trained, differences = run_fresh(played, folder, tmp_path / "gate")
    assert max(differences.values()) < TOLERANCE
    told = AutoTokenizer.from_pretrained(folder)("+=")["input_ids"]
    assert group.num_turns.tolist() == [4] * GROUP_SIZE
    assert group.tokens[~group.sampled].tolist() == told * 3 * GROUP_SIZE
    assert trained == group.tokens[group.sampled].tolist()
    assert group.rewards.tolist() == np.add.reduceat(group.sampled, np.cumsum(group.lengths) - group.lengths).tolist()
    for completion in np.split(np.where(group.sampled, group.versions, -9), np.cumsum(group.lengths)[:-1]):
        versions = completion[completion >= 0]
        assert set(versions.tolist()) == {0, 1}, "each episode goes on under the version that came in its midst"
        assert (np.diff(versions) >= 0).all()
