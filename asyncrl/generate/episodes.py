"""lease → episodes → scored group: what a generator does with one prompt when an environment answers the policy.

    sample ──▶ turn 0 ──▶ environment ──▶ observation ──▶ sample ──▶ turn 1 ──▶ environment ──▶ … done, or a limit
    each turn goes on from all token ids before it, as they were sampled: token in, token out

An episode is one completion of its group. The environment's tokens stand in it with `types.NO_VERSION` and a logprob of
0, and its spans say where. A publish between two turns, or within one, leaves every sampled token the version that
sampled it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from asyncrl.config.schema import Config
from asyncrl.environments.base import Action, Row, as_columns
from asyncrl.environments.pool import EnvironmentPool, Episode, EpisodeFailedError
from asyncrl.errors import RunError
from asyncrl.generate.engines.base import Engine, Sampling
from asyncrl.generate.finished_completions import Finished, completion_of
from asyncrl.generate.observation_tokens import ObservationTokens
from asyncrl.generate.rollout import at_once, make_group, reasons, sample, sampling_of
from asyncrl.rewards.worker import RewardFailure, Score
from asyncrl.transport.messages.rollouts import LeaseGrant
from asyncrl.types import NO_VERSION, Completion, Group, beyond_float32, row_name


@dataclass
class Transcript:
    """An episode so far."""

    prompt: list[int]
    parts: list[Completion] = field(default_factory=list)
    """Sampled and environment's in turn; the first is sampled, and the last when the episode has ended."""
    rewards: list[float] = field(default_factory=list)
    """Of each turn that the environment answered."""
    truncated: bool = False
    failure: str | None = None
    """Why it could not go on."""
    environment_s: float = 0.0

    @property
    def token_ids(self) -> list[int]:
        """With the prompt."""
        return [*self.prompt, *(int(token) for part in self.parts for token in part.token_ids)]

    @property
    def score(self) -> Score | RewardFailure:
        if self.failure is not None:
            return RewardFailure(self.failure)
        reward = sum(self.rewards)
        if (problem := beyond_float32(reward)) is not None:
            return RewardFailure(problem)
        return Score(reward, correct=reward >= 1)

    @property
    def completion(self) -> Completion:
        """The whole episode as one."""
        return Completion(
            token_ids=np.concatenate([part.token_ids for part in self.parts]),
            logprobs=np.concatenate([part.logprobs for part in self.parts]),
            versions=np.concatenate([part.versions for part in self.parts]),
            support_ids=np.concatenate([part.support_ids for part in self.parts]),
            support_sizes=np.concatenate([part.support_sizes for part in self.parts]),
            text="".join(part.text for part in self.parts),
            finish_reason="length" if self.truncated else "stop",
        )


class Episodes:
    """Plays the episodes of leases. Safe to share between the tasks of one event loop."""

    def __init__(self, engine: Engine, pool: EnvironmentPool, tokens: ObservationTokens, config: Config) -> None:
        self._engine = engine
        self._pool = pool
        self._tokens = tokens
        self._config = config

    async def roll_out(self, grant: LeaseGrant, finished: Finished) -> tuple[Group, list[str]]:
        """The episodes of one lease, all at once and each at its own pace, see `rollout.RollOut`.

        Raises:
            RunError: as in `rollout.sample`; or the environment cannot begin, or does not begin alike.
        """
        transcripts = await at_once([self._episode(grant, finished, number) for number in range(grant.num_samples)])
        prompt = transcripts[0].prompt
        place = f"prompt {grant.index} ({row_name(grant.row, grant.data_set)})"
        if any(transcript.prompt != prompt for transcript in transcripts):
            raise RunError(f"{place}: its episodes begin differently; `reset` may draw on the row and its seed alone")
        return _group(grant, transcripts), reasons([transcript.score for transcript in transcripts])

    async def _episode(self, grant: LeaseGrant, finished: Finished, number: int) -> Transcript:
        if (kept := finished.get(number)) is not None:
            return _transcript(kept)
        transcript = await self._play(grant, number)
        if transcript.failure is None:
            finished.add(number, replace(_group(grant, [transcript]), sample_text=transcript.completion.text))
        return transcript

    async def _play(self, grant: LeaseGrant, number: int) -> Transcript:
        row = Row(grant.row, grant.text, grant.answer, grant.seed, as_columns(grant.columns))
        episode_id = f"{grant.kind}-{grant.lease_id}-{number}"
        with self._pool.episode(episode_id, row) as episode:
            transcript = Transcript(await self._begin(grant, episode))
            try:
                await self._take_turns(grant, number, episode, transcript)
            except EpisodeFailedError as error:
                transcript.failure = str(error)
                transcript.rewards = [math.nan] * (len(transcript.parts) // 2 + 1)
            transcript.environment_s = episode.elapsed_s
            return transcript

    async def _begin(self, grant: LeaseGrant, episode: Episode) -> list[int]:
        """The prompt."""
        place = f"prompt {grant.index} ({row_name(grant.row, grant.data_set)})"
        try:
            observation = await episode.reset()
            prompt = grant.token_ids if observation is None else self._tokens.opening(observation)
        except EpisodeFailedError as error:
            raise RunError(f"{place}: its environment cannot begin: {error}") from error
        if len(prompt) > self._config.data.max_prompt_tokens:
            longest = self._config.data.max_prompt_tokens
            raise RunError(f"{place}: its episodes begin with {len(prompt)} tokens, data.max_prompt_tokens={longest}")
        return prompt

    async def _take_turns(self, grant: LeaseGrant, number: int, episode: Episode, transcript: Transcript) -> None:
        environment, room = self._config.environment, self._config.generator.max_tokens
        clock = asyncio.get_running_loop().time
        deadline = clock() + (environment.episode_time_limit_s or math.inf)
        for turn in range(environment.max_turns):
            sampling = self._sampling(grant, number, turn, room)
            request_id = f"{grant.kind}-{grant.lease_id}-{number}-{turn}"
            (said,) = await sample(grant, self._engine, request_id, transcript.token_ids, sampling)
            transcript.parts.append(said)
            room -= len(said.token_ids)
            step = await episode.step(Action(said.text, said.token_ids.tolist()))
            transcript.rewards.append(step.reward)
            if step.done:
                transcript.truncated = said.finish_reason == "length" and room == 0
                return
            assert step.observation is not None
            reply = self._tokens.reply(step.observation, after_eos=said.finish_reason == "stop")
            room -= len(reply)
            if room < 1 or clock() >= deadline or turn + 1 == environment.max_turns:
                break
            transcript.parts.append(_given(reply, self._tokens.text(reply), sampling.truncates))
        transcript.truncated = True

    def _sampling(self, grant: LeaseGrant, number: int, turn: int, room: int) -> Sampling:
        """Of one turn, with a seed of its own."""
        sampling = sampling_of(grant, self._config)
        seed = None
        if sampling.seed is not None:
            seed = int(np.random.SeedSequence((sampling.seed, number, turn)).generate_state(1, np.uint64)[0] >> 2)
        most = min(room, self._config.environment.max_turn_tokens or room)
        return replace(sampling, num_samples=1, max_tokens=most, seed=seed)


def _group(grant: LeaseGrant, transcripts: Sequence[Transcript]) -> Group:
    scores = [transcript.score for transcript in transcripts]
    return replace(
        make_group(grant, [transcript.completion for transcript in transcripts], scores),
        prompt_token_ids=np.asarray(transcripts[0].prompt, np.int32),
        spans=[[len(part.token_ids) for part in transcript.parts] for transcript in transcripts],
        turn_rewards=[transcript.rewards for transcript in transcripts],
        environment_s=sum(transcript.environment_s for transcript in transcripts),
    )


def _transcript(group: Group) -> Transcript:
    """Of a group of one. Its text is that of its first part."""
    whole, ends = completion_of(group), np.cumsum(group.spans[0])
    support_ends = [whole.support_sizes[:end].sum() for end in ends]
    starts, support_starts = [0, *ends[:-1]], [0, *support_ends[:-1]]
    parts = [
        Completion(
            token_ids=whole.token_ids[start:end],
            logprobs=whole.logprobs[start:end],
            versions=whole.versions[start:end],
            text=whole.text if start == 0 else "",
            finish_reason="stop",
            support_ids=whole.support_ids[support_start:support_end],
            support_sizes=whole.support_sizes[start:end],
        )
        for start, end, support_start, support_end in zip(starts, ends, support_starts, support_ends, strict=True)
    ]
    return Transcript(
        prompt=group.prompt_token_ids.tolist(),
        parts=parts,
        rewards=group.turn_rewards[0],
        truncated=bool(group.truncated[0]),
        environment_s=group.environment_s,
    )


def _given(token_ids: Sequence[int], text: str, beside_supports: bool) -> Completion:
    """What an environment gave, beside what was sampled."""
    return Completion(
        token_ids=np.asarray(token_ids, np.int32),
        logprobs=np.zeros(len(token_ids), np.float32),
        versions=np.full(len(token_ids), NO_VERSION, np.int32),
        text=text,
        finish_reason="stop",
        support_sizes=np.zeros(len(token_ids) if beside_supports else 0, np.int32),
    )
