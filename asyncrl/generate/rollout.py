"""lease → requests → scored group: what a generator does with one prompt that is answered in one turn."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import numpy as np

from asyncrl.config.schema import Config, GeneratorConfig
from asyncrl.errors import RunError
from asyncrl.generate.engines.base import Engine, Sampling
from asyncrl.generate.finished_completions import Finished, completion_of, group_of_one
from asyncrl.rewards.worker import RewardFailure, Score
from asyncrl.transport.messages.rollouts import LeaseGrant
from asyncrl.types import Completion, Group, row_name

T = TypeVar("T")

KEEP_FROM_TOKENS = 256
"""generator.max_tokens from which 0.5 ms a completion are a few percent of what vLLM's front process spends on it."""

RollOut = Callable[[LeaseGrant, Finished], Awaitable[tuple[Group, list[str]]]]
"""From a lease, and what had been finished of it, to its group, and the reason of each completion that could not be
scored (its reward is NaN). What ends meanwhile is added to what is finished.

Raises RunError when the group must not be trained on.
"""


class Scorer(Protocol):
    """A RewardPool, as rollouts use it."""

    async def score(
        self, prompt: str, completions: list[str], answer: str, columns: str, tokens: list[list[int]]
    ) -> Sequence[Score | RewardFailure]: ...


async def roll_out(
    grant: LeaseGrant, finished: Finished, engine: Engine, scorer: Scorer, config: Config
) -> tuple[Group, list[str]]:
    """Samples and scores the group of one lease, each completion by itself where what has ended is to be kept.

    See `RollOut`.

    Raises:
        RunError: a completion is missing, empty or has a logprob that is not finite; the group must not be trained on.
    """
    if _keeps_finished(config.generator):
        completions = await _sample_alone(grant, finished, engine, sampling_of(grant, config))
    else:
        request_id = f"{grant.kind}-{grant.lease_id}"
        completions = await sample(grant, engine, request_id, grant.token_ids, sampling_of(grant, config))
    texts = [completion.text for completion in completions]
    tokens = [completion.token_ids.tolist() for completion in completions]
    scores = await scorer.score(grant.text, texts, grant.answer, grant.columns, tokens)
    return make_group(grant, completions, scores), reasons(scores)


def _keeps_finished(config: GeneratorConfig) -> bool:
    return config.max_tokens >= KEEP_FROM_TOKENS if config.keep_finished is None else config.keep_finished


async def _sample_alone(grant: LeaseGrant, finished: Finished, engine: Engine, sampling: Sampling) -> list[Completion]:
    """Each completion that is missing by a request of its own, with the seed that it has in its group's request."""

    async def complete(position: int) -> Completion:
        if (kept := finished.get(position)) is not None:
            return completion_of(kept)
        seed = None if sampling.seed is None else sampling.seed + position
        alone = replace(sampling, num_samples=1, seed=seed)
        request_id = f"{grant.kind}-{grant.lease_id}-{position}"
        (completion,) = await sample(grant, engine, request_id, grant.token_ids, alone)
        finished.add(position, group_of_one(grant, completion))
        return completion

    return await at_once([complete(position) for position in range(grant.num_samples)])


async def at_once(parts: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Their results; the first error ends the others."""
    try:
        async with asyncio.TaskGroup() as running:
            tasks = [running.create_task(part) for part in parts]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def sampling_of(grant: LeaseGrant, config: Config) -> Sampling:
    """How the completions of a lease are sampled."""
    training, generator = grant.kind == "train", config.generator
    return Sampling(
        num_samples=grant.num_samples,
        temperature=grant.temperature,
        top_p=generator.top_p if training else 1.0,
        top_k=generator.top_k if training else -1,
        max_tokens=generator.max_tokens,
        seed=grant.seed if _is_seeded(grant, config) else None,
    )


def _is_seeded(grant: LeaseGrant, config: Config) -> bool:
    """With η > 0 timing decides which version samples what, so seeds would repeat nothing that is trained on."""
    if config.generator.seeded_sampling is None:
        return grant.kind == "eval" or config.replay.max_staleness == 0
    return config.generator.seeded_sampling


async def sample(
    grant: LeaseGrant, engine: Engine, request_id: str, token_ids: list[int], sampling: Sampling
) -> list[Completion]:
    """Completions that may be trained on.

    Raises:
        RunError: one is missing, empty, has a logprob that is not finite or lacks the tokens that were sampled from.
    """
    completions = await engine.sample(request_id, token_ids, sampling)
    place = f"prompt {grant.index} ({row_name(grant.row, grant.data_set)})"
    if len(completions) != sampling.num_samples:
        raise RunError(f"{place}: {len(completions)} completions instead of {sampling.num_samples}")
    for position, completion in enumerate(completions):
        if len(completion.token_ids) == 0:
            raise RunError(f"{place}: completion {position} is empty")
        if not np.isfinite(completion.logprobs).all():
            raise RunError(f"{place}: completion {position} has logprobs that are not finite")
        if sampling.truncates and len(completion.support_sizes) != len(completion.token_ids):
            raise RunError(f"{place}: completion {position} does not say which tokens top-k and top-p left")
    return completions


def make_group(grant: LeaseGrant, completions: Sequence[Completion], scores: Sequence[Score | RewardFailure]) -> Group:
    return Group(
        index=grant.index,
        row=grant.row,
        prompt_token_ids=np.asarray(grant.token_ids, np.int32),
        lengths=np.asarray([len(completion.token_ids) for completion in completions], np.int32),
        tokens=np.concatenate([completion.token_ids for completion in completions]),
        logprobs=np.concatenate([completion.logprobs for completion in completions]),
        versions=np.concatenate([completion.versions for completion in completions]),
        rewards=np.asarray([score.reward if isinstance(score, Score) else np.nan for score in scores], np.float32),
        correct=np.asarray([isinstance(score, Score) and score.correct for score in scores], np.bool_),
        truncated=np.asarray([completion.finish_reason == "length" for completion in completions], np.bool_),
        sample_text=f"{grant.text}{completions[0].text}",
        term_scores=_term_scores(scores),
        data_set=grant.data_set,
        support_ids=np.concatenate([completion.support_ids for completion in completions]),
        support_sizes=np.concatenate([completion.support_sizes for completion in completions]),
    )


def reasons(scores: Sequence[Score | RewardFailure]) -> list[str]:
    """Of the failures among the scores."""
    return [score.reason for score in scores if isinstance(score, RewardFailure)]


def _term_scores(scores: Sequence[Score | RewardFailure]) -> dict[str, list[float]]:
    labels = next((score.terms for score in scores if isinstance(score, Score)), {})
    return {label: [score.terms[label] if isinstance(score, Score) else np.nan for score in scores] for label in labels}
