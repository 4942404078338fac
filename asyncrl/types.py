"""What flows: prompt → lease → group → batch → version. Plain data, numpy arrays, and a few functions on them.

Legend for shapes: G completions of one group, L_i tokens of completion i, T = Σ L_i, B groups of one batch.

Worked example, a group of G = 2 completions of 3 and 2 tokens; the second was cut by a publish after its first token:

    lengths  = [3, 2]
    tokens   = [11, 12, 2,  21, 2]          T = 5
    logprobs = [-.1, -.7, -.01,  -.5, -.2]   log μ of each token, by the engine that sampled it
    versions = [4, 4, 4,  4, 5]              the policy version that sampled each token

An episode with turns is one completion too. Here the model sampled 31, 2, an environment answered 40, 41, and the model
sampled 32, 2; such a completion has its spans:

    spans    = [2, 2, 2]                     sampled, environment, sampled
    tokens   = [31, 2,  40, 41,  32, 2]
    logprobs = [-.3, -.1,  0,  0,  -.4, -.1]
    versions = [4, 4,  -1, -1,  5, 5]
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

import numpy as np
from numpy.typing import NDArray

FinishReason = Literal["stop", "length"]

MESSAGE_ROLES = ("system", "developer", "user", "assistant", "tool")
"""Who may speak in a conversation."""

NO_VERSION = -1
"""The version of an environment's token, which no policy sampled. Its logprob is 0."""

LARGEST_REWARD = 3.4028234663852886e38
"""Float32's largest number: a larger reward would be infinite to the learner, and its whole update skipped."""


def _none() -> NDArray[np.int32]:
    return np.zeros(0, np.int32)


@dataclass(frozen=True)
class Prompt:
    """One row of the prompt data, ready to be sampled."""

    row: int
    """Row of its data set, 0-based: the prompt's name in messages and in the ledger."""
    token_ids: list[int]
    """The prompt as the model sees it, chat template applied."""
    text: str
    """The prompt as the data gave it; reward functions see this."""
    answer: str
    """The reference answer as text; a list or an object as JSON."""
    columns: str = ""
    """Further values of the row that the rewards take by name, as a JSON object; empty when they take none: the columns
    that they ask for, `messages` of a prompt that is a conversation, and `answer` when it is a list or an object."""
    data_set: str = ""
    """Its name in a mixture (data.mixture), whose data sets each count their rows from 0."""


@dataclass(frozen=True)
class Completion:
    """One sampled answer, before it is scored."""

    token_ids: NDArray[np.int32]
    """[L], with the EOS token when it was sampled."""
    logprobs: NDArray[np.float32]
    """[L] log μ: after temperature, top-p and top-k."""
    versions: NDArray[np.int32]
    """[L] policy version that sampled each token."""
    text: str
    finish_reason: FinishReason
    support_ids: NDArray[np.int32] = field(default_factory=_none)
    support_sizes: NDArray[np.int32] = field(default_factory=_none)
    """As in `Group`."""


@dataclass(frozen=True)
class Group:
    """The G completions of one prompt with their scores: what a generator returns for a lease."""

    index: int
    """Admission index: 0, 1, 2, … in the order in which prompts were drawn; names the prompt's place in the run."""
    row: int
    prompt_token_ids: NDArray[np.int32]
    """[P]"""
    lengths: NDArray[np.int32]
    """[G], each ≥ 1"""
    tokens: NDArray[np.int32]
    """[T]"""
    logprobs: NDArray[np.float32]
    """[T]"""
    versions: NDArray[np.int32]
    """[T]"""
    rewards: NDArray[np.float32]
    """[G]; NaN where the reward function failed: that completion is quarantined and carries no gradient."""
    correct: NDArray[np.bool_]
    """[G]: the first reward term scored ≥ 1."""
    truncated: NDArray[np.bool_]
    """[G]: ended by a limit rather than by EOS or by the environment."""
    sample_text: str = ""
    """The first completion as text, for people."""
    spans: list[list[int]] = field(default_factory=list)
    """[G] for each completion the numbers of tokens that were sampled, came from the environment, were sampled, …, each
    ≥ 1 and together its length. An odd number of them: a completion begins and ends with sampled tokens. Empty = every
    token of every completion was sampled."""
    turn_rewards: list[list[float]] = field(default_factory=list)
    """[G] what each turn of a completion was paid, together its reward; empty without an environment."""
    environment_s: float = 0.0
    """Seconds that the completions' environments computed, all together."""
    term_scores: dict[str, list[float]] = field(default_factory=dict)
    """Label of each reward term → [G] unweighted scores, NaN where the reward is; empty where there is one term."""
    data_set: str = ""
    """As `Prompt.data_set`."""
    engine: str = ""
    """That sampled it, where generators run different ones (`config/engines.py`)."""
    support_ids: NDArray[np.int32] = field(default_factory=_none)
    """[Σ support_sizes] the tokens that top-k and top-p left to sample from, set after set, each with its sampled token
    first; μ is normalised over them. Empty = the whole vocabulary was there for every token."""
    support_sizes: NDArray[np.int32] = field(default_factory=_none)
    """[T] of each token's set, 0 for an environment's; empty as above."""

    @property
    def size(self) -> int:
        """G."""
        return len(self.lengths)

    @property
    def num_tokens(self) -> int:
        """T."""
        return len(self.tokens)

    @property
    def sampled(self) -> NDArray[np.bool_]:
        """[T]: the policy sampled the token; False = an environment gave it."""
        return sampled_tokens(self.lengths, self.spans)

    @property
    def num_turns(self) -> NDArray[np.int64]:
        """[G] sampled spans of each completion."""
        return np.array([len(spans) // 2 + 1 for spans in self.spans or [[]] * self.size])


@dataclass(frozen=True)
class Batch:
    """B groups for one learner step, in the order in which they are to be trained."""

    step: int
    """The version that consumes it: the policy before this step."""
    groups: list[Group] = field(default_factory=list)
    next_step: int = 0
    """The first step whose batch has not been taken. Above step + 1, the learner has been here before and retraces its
    steps from a checkpoint."""
    queue_depth: int = 0
    """Finished groups left in the queue when this batch was taken."""
    eta: int = 0
    """η of admission when this batch was taken: replay.max_staleness, or less where a controller moves it."""

    @property
    def engines(self) -> list[str]:
        """That sampled it, where generators run different ones; else empty."""
        return sorted({group.engine for group in self.groups} - {""})


def first_of_each(prompts: Sequence[Prompt], num_prompts: int | None) -> list[Prompt]:
    """The first `num_prompts` of each data set; all of them for None."""
    sets = [list(of_set) for _, of_set in groupby(prompts, key=lambda prompt: prompt.data_set)]
    return [prompt for of_set in sets for prompt in of_set[:num_prompts]]


def row_name(row: int, data_set: str) -> str:
    """A prompt's name in messages."""
    return f"row {row} of {data_set}" if data_set else f"row {row}"


def beyond_float32(reward: float) -> str | None:
    """Why this reward cannot be trained on, for people; None = it can."""
    if abs(reward) <= LARGEST_REWARD:
        return None
    return f"the reward, {reward:g}, is beyond float32 (±{LARGEST_REWARD:.1e}); scale it down"


def sampled_tokens(lengths: Iterable[int], spans: list[list[int]]) -> NDArray[np.bool_]:
    """[T] as in `Group.sampled`; arguments as the fields of `Group`."""
    runs = [run for completion in spans for run in completion] if spans else list(lengths)
    is_sampled = [position % 2 == 0 for completion in spans for position in range(len(completion))]
    return np.repeat(np.array(is_sampled or [True] * len(runs)), runs)


def prompts_checksum(indices: Iterable[int]) -> int:
    """Of a batch's admission indices, in order: the learner's word on what a step trained, beside the ledger's."""
    return zlib.crc32(np.fromiter(indices, "<i8").tobytes())
