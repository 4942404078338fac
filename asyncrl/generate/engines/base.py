"""What asyncrl asks of an inference engine. vLLM and SGLang implement it.

`generator.engine=module:Class` names another: `Class(spec, config.generator)`, called inside a running
event loop, gives an `Engine`. Its end of a publish is `publish/receiver.py`. `bench/standin/engine.py` is an
example.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from asyncrl.publish.second_copy import SecondCopy
from asyncrl.types import Completion


@dataclass(frozen=True)
class Sampling:
    """How one group is sampled."""

    num_samples: int
    temperature: float
    top_p: float
    top_k: int
    max_tokens: int
    seed: int | None
    """None = unseeded."""


@dataclass(frozen=True)
class EngineSpec:
    """What the engine is to serve."""

    model_path: str
    dtype: str
    max_model_len: int
    max_num_sequences: int
    """Completions that decode together."""
    seed: int
    on_cpu: bool
    trust_remote_code: bool
    second_copy: SecondCopy | None = None
    """What the next version would take beside the one that serves, in GPU memory; None = it is not put there."""


class Engine(Protocol):
    """Samples completions and takes new weights in flight.

    `resume` switches version label, prefix-cache salt and decoding together: a completion that starts after it sees
    nothing of older versions, one that was in flight goes on and its later tokens carry the new version.
    """

    @property
    def dead(self) -> bool:
        """The engine will never answer again. Requests made to it may then wait for ever."""

    async def warm_up(self) -> None:
        """Does everything now that would delay the first prompt of a run."""

    async def sample(self, request_id: str, prompt_token_ids: list[int], sampling: Sampling) -> list[Completion]: ...

    async def join_group(self, init_info: dict[str, Any]) -> None:
        """Joins a publish group; leaves the one it is in."""

    async def leave_group(self) -> None: ...

    async def stage(self) -> None:
        """Prepares to receive new weights beside those that serve."""

    async def pause(self, recompute_kv: bool) -> None: ...

    async def update(self, update_info: dict[str, Any]) -> None:
        """Takes over new weights, whole or not at all; only while paused."""

    async def resume(self, version: int) -> None: ...

    def shutdown(self) -> None: ...

    async def kernels(self) -> dict[str, str]:
        """What computes `attention` and `sampling`, and whatever else a person would want named. Only for people."""
