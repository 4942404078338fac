"""The generators and learners that checks drive, whether each is a process of its own or a part of this one.

publish    learners: gather ─▶ learner 0: send ═══▶ every generator
sample     a generator's engine ─▶ completions
score      completions ─▶ learners ─▶ what the policy of a version says of their tokens
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from asyncrl.cluster.memory import Estimate
from asyncrl.config.schema import Config
from asyncrl.errors import DeadlineError, PublishError
from asyncrl.generate.engines.base import Sampling
from asyncrl.selftest.learner import Scores
from asyncrl.transport.messages.learning import Member
from asyncrl.types import Completion, Group

MAX_NEW_TOKENS = 48
MAX_PROMPT_TOKENS = 320
"""Long enough for whole blocks of any engine's prefix cache (16 tokens on GPUs, 128 in vLLM on a CPU)."""


class Part(Protocol):
    """A generator (`selftest/generator.py`) or a learner rank (`selftest/learner.py`)."""

    name: str

    def call(self, method: str, *args: Any) -> Future[Any]:
        """Starts a method of it."""


@dataclass(frozen=True)
class Request:
    """One prompt, and how it is sampled."""

    prompt: list[int]
    sampling: Sampling


@dataclass(frozen=True)
class Sampled:
    """Completions of one prompt."""

    prompt: list[int]
    completions: list[Completion]

    def group(self, index: int) -> Group:
        """As the learner takes them; all rewards 0."""
        completions = self.completions
        size = len(completions)
        return Group(
            index=index,
            row=index,
            prompt_token_ids=np.asarray(self.prompt, np.int32),
            lengths=np.asarray([len(one.token_ids) for one in completions], np.int32),
            tokens=np.concatenate([one.token_ids for one in completions]),
            logprobs=np.concatenate([one.logprobs for one in completions]),
            versions=np.concatenate([one.versions for one in completions]),
            rewards=np.zeros(size, np.float32),
            correct=np.zeros(size, np.bool_),
            truncated=np.asarray([one.finish_reason == "length" for one in completions]),
            support_ids=np.concatenate([one.support_ids for one in completions]),
            support_sizes=np.concatenate([one.support_sizes for one in completions]),
        )


@dataclass
class System:
    """What is tested.

    A publish makes a new version each time; its weights differ from those of every other version in each parameter.
    """

    config: Config
    """With model.path, model.dtype, learner.micro_batch_tokens and publish.* resolved."""
    learners: list[Part]
    generators: list[Part]
    noise_scale: float
    """How far versions are apart, see `LearnerRank`."""
    num_layers: int
    vocab_size: int
    """Token ids below it may stand in prompts."""
    eos_token_ids: list[int]
    max_num_sequences: int
    """Completions that an engine is told to decode together."""
    decode: Callable[[list[int]], str]
    """Token ids → the text that rewards see."""
    new_rendezvous: Callable[[], str]
    """A new file in which processes meet, that every node sees."""
    start_again: Callable[[str], Part] | None = None
    """Gives a new process for a generator that is dead; None = it cannot be had."""
    estimates: list[Estimate] = field(default_factory=list)
    """What `check` predicts; empty = unknown."""
    version: int = -1
    members: dict[str, Member] = field(default_factory=dict)
    _joined_with: tuple[str, float] | None = None
    """kv_cache and timeout_s of the session; None = there is none that works."""

    @property
    def on_cpu(self) -> bool:
        return self.config.cluster.device == "cpu"

    def start(self) -> None:
        """Brings up all parts.

        Raises:
            AsyncrlError: one did not come up.
        """
        rendezvous, world_size = self.new_rendezvous(), len(self.learners)
        limit_s = self.config.run.startup_timeout_s
        starting = [
            learner.call("start", rank, world_size, rendezvous, self.noise_scale)
            for rank, learner in enumerate(self.learners)
        ]
        for generator, future in [(one, one.call("start")) for one in self.generators]:
            self.members[generator.name] = wait(future, limit_s, f"{generator.name} to start its engine")
        for learner, future in zip(self.learners, starting, strict=True):
            wait(future, limit_s, f"{learner.name} to load {self.config.model.path}")

    def publish(
        self, *, kv_cache: str = "recompute", timeout_s: float | None = None, num_damaged: int = 0
    ) -> dict[str, float]:
        """The next version, in every generator; the figures of `PublishSession.send`.

        Args:
            kv_cache: as publish.kv_cache.
            timeout_s: as publish.timeout_s; None = the configuration's.
            num_damaged: buckets that leave learner 0 with a changed byte.

        Raises:
            PublishError: it failed. The next publish goes to the same generators, in a session of its own.
        """
        limit_s = timeout_s or self.config.publish.timeout_s
        self._join(kv_cache, limit_s)
        self.version += 1
        self.on_learners("gather", self.version)
        sent = self.learners[0].call("send", self.version, num_damaged)
        try:
            figures: dict[str, float] = wait(sent, 8 * limit_s, f"version {self.version} to be published")
        except PublishError:
            self._joined_with = None
            raise
        return figures

    def replace(self, generator: Part) -> Part:
        """A new process for a generator that is dead; it has yet to be published to."""
        assert self.start_again is not None
        again = self.start_again(generator.name)
        self.generators[self.generators.index(generator)] = again
        limit_s = self.config.run.startup_timeout_s
        self.members[again.name] = wait(again.call("start"), limit_s, f"{again.name} to start its engine")
        self._joined_with = None
        return again

    def _join(self, kv_cache: str, timeout_s: float) -> None:
        if self._joined_with == (kv_cache, timeout_s):
            return
        members = [self.members[generator.name] for generator in self.generators]
        joined = self.learners[0].call("join", members, kv_cache, timeout_s)
        wait(joined, 4 * timeout_s, "the publish group to come about")
        self._joined_with = (kv_cache, timeout_s)

    def on_learners(self, method: str, *args: Any) -> list[Any]:
        """The same on every rank, which compute together. Their answers, by rank."""
        futures = [learner.call(method, *args) for learner in self.learners]
        limit_s = self.config.run.step_timeout_s
        return [wait(future, limit_s, f"learners to {method}") for future in futures]

    def sampling(self, num_samples: int, seed: int | None = 0, **changes: Any) -> Sampling:
        """As training samples, but at temperature 1 and from the whole vocabulary where `changes` do not say else."""
        max_tokens = min(MAX_NEW_TOKENS, self.config.generator.max_tokens)
        return Sampling(
            num_samples,
            **{"temperature": 1.0, "top_p": 1.0, "top_k": -1, "max_tokens": max_tokens, "seed": seed, **changes},
        )

    def prompt(self, seed: int, num_tokens: int | None = None) -> list[int]:
        """Random tokens.

        Args:
            num_tokens: None = as many as are useful and allowed.
        """
        most = min(MAX_PROMPT_TOKENS, self.config.data.max_prompt_tokens)
        size = most if num_tokens is None else min(num_tokens, most)
        return np.random.default_rng(seed).integers(0, self.vocab_size, size).tolist()

    def submit(self, generator: Part, prompt: list[int], sampling: Sampling) -> Future[list[Completion]]:
        """Starts a request."""
        return generator.call("sample", Request(prompt, sampling))

    def sample(self, generator: Part, prompts: Sequence[list[int]], sampling: Sampling) -> list[Sampled]:
        """Completions of each prompt, all sampled together."""
        requests = [self.submit(generator, prompt, sampling) for prompt in prompts]
        limit_s = self.config.replay.lease_timeout_s
        what = f"completions of {generator.name}"
        return [Sampled(p, wait(request, limit_s, what)) for p, request in zip(prompts, requests, strict=True)]

    def sample_together(self, generator: Part, requests: list[Request]) -> list[Sampled]:
        """Of each request, all of which are in the engine at once."""
        asked = generator.call("sample_together", requests)
        found = wait(asked, self.config.replay.lease_timeout_s, f"completions of {generator.name}")
        return [Sampled(one.prompt, completions) for one, completions in zip(requests, found, strict=True)]

    def score(self, sampled: Sequence[Sampled], version: int, temperature: float) -> list[Scores]:
        """Of each completion, prompt after prompt."""
        groups = [one.group(index) for index, one in enumerate(sampled)]
        found: dict[int, Scores] = {}
        for share in self.on_learners("score", version, groups, temperature):
            found |= share
        return [found[number] for number in range(sum(len(one.completions) for one in sampled))]


def wait(future: Future[Any], timeout_s: float, what: str) -> Any:
    """What became of a call.

    Raises:
        DeadlineError: it did not end in time.
    """
    try:
        return future.result(timeout_s)
    except TimeoutError as error:
        raise DeadlineError(what, timeout_s, "the process that was asked") from error
