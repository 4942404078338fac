"""What asyncrl asks of an inference engine. vLLM and SGLang implement it.

`generator.engine=module:Class` or `file.py:Class` names another: `Class(spec, config.generator)`, called inside a
running event loop, gives an `Engine`. Its end of a publish is `publish/receiver.py`. `bench/standin/engine.py` is an
example, docs/engines.md says in which order to build one, and `asyncrl selftest --engine NAME` checks it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from asyncrl.publish.staging_memory import SecondCopy
from asyncrl.types import Completion


@dataclass(frozen=True)
class Sampling:
    """How one group is sampled."""

    num_samples: int
    temperature: float
    """0 = always the likeliest token, as an evaluation may want it."""
    top_p: float
    top_k: int
    max_tokens: int
    seed: int | None
    """None = unseeded."""

    @property
    def truncates(self) -> bool:
        """Not every token of the vocabulary may be sampled: each completion has to say which (`support_ids`)."""
        return self.top_k > 0 or self.top_p < 1


@dataclass(frozen=True)
class EngineSpec:
    """What the engine is to serve."""

    model_path: str
    dtype: str
    max_model_len: int
    """Tokens of a prompt with its completion."""
    max_num_sequences: int
    """Completions that decode together."""
    seed: int
    on_cpu: bool
    trust_remote_code: bool
    float32_head: bool = False
    """Logits are not rounded to the dtype."""
    second_copy: SecondCopy | None = None
    """What the next version would take beside the one that serves, in GPU memory; None = it is not put there."""


class Engine(Protocol):
    """Samples completions and takes new weights in flight.

    All methods are called from one event loop: `sample` many times at once, and beside it the commands of a publish,
    one after another. They are join_group, then stage, pause, update and resume for every version.

    `resume` switches version label, prefix-cache salt and decoding together: a completion that starts after it sees
    nothing of older versions, one that was in flight goes on and its later tokens carry the new version.
    """

    @property
    def dead(self) -> bool:
        """The engine will never answer again. Requests made to it may then wait for ever.

        Asked ten times a second, so it must not block. It has to notice by itself that a child process has died.
        """

    async def warm_up(self) -> None:
        """Does everything now that would delay the first prompt of a run."""

    async def sample(self, request_id: str, prompt_token_ids: list[int], sampling: Sampling) -> list[Completion]:
        """`sampling.num_samples` completions of one prompt, each as `Completion` describes it.

        A request that comes while paused waits, and is of the version that `resume` names. When this call is cancelled,
        its request has to leave the engine.

        Args:
            request_id: unique among the requests in flight.

        Raises:
            RunError: this prompt cannot be answered; the engine goes on. Any other error ends the generator.
        """

    async def join_group(self, init_info: dict[str, Any]) -> None:
        """Joins a publish group; leaves the one it is in. Returns at once: other members may come late.

        Args:
            init_info: the fields of `publish.receiver.JoinInfo`.
        """

    async def leave_group(self) -> None:
        """Whatever state the group is in; nothing where there is none. The weights that serve stay."""

    async def stage(self) -> None:
        """Begins to receive new weights beside those that serve, and returns at once."""

    async def pause(self, recompute_kv: bool) -> None:
        """No token is computed from its return until `resume`. Requests in flight are kept.

        Args:
            recompute_kv: what was computed of them is dropped, and computed anew with the next weights.
        """

    async def update(self, update_info: dict[str, Any]) -> None:
        """Takes over new weights, whole or not at all; only while paused.

        Args:
            update_info: `staged`: `stage` has begun to receive them; else they come now.

        Raises:
            PublishError: they did not come whole. The engine stays paused, and another `update` may follow.
        """

    async def resume(self, version: int) -> None:
        """Decoding goes on, and what is computed from now on carries `version`."""

    def shutdown(self) -> None:
        """Ends the engine and its processes, within run.stop_timeout_s. Nothing is asked of it afterwards."""

    async def kernels(self) -> dict[str, str]:
        """What computes `attention` and `sampling`, and whatever else a person would want named. Only for people."""


def completion_text(tokenizer: Any, token_ids: Any) -> str:
    """`Completion.text`, whichever engine sampled it."""
    return str(tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
