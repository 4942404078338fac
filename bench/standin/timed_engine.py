"""An engine that only takes its time: `generator.engine=bench.standin.timed_engine:TimedEngine`.

Everything around it is real: sockets, ledger, leases, publishes, the learner. A decode step of n running sequences
waits for `DECODE_BASE_S` + `DECODE_PER_SEQUENCE_S`·n. Lengths are lognormal; their median is a quarter of
`generator.max_tokens`. So a run shows what the pipeline does with known speeds, and generation needs no core. Tokens
and logprobs mean nothing: it is for timing alone.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from asyncrl.config.schema import GeneratorConfig
from asyncrl.generate.engines.base import EngineSpec, Sampling
from asyncrl.types import Completion
from bench.standin.engine import StandInEngine

DECODE_BASE_S = 0.010
DECODE_PER_SEQUENCE_S = 0.0005
MEDIAN_SHARE = 0.25
LENGTH_SIGMA = 0.8
TOKEN = 5
LOGPROB = -1.0


@dataclass
class _Group:
    lengths: NDArray[np.int32]
    done: asyncio.Future[None]
    versions: list[int] = field(default_factory=list)
    """Of each decode step that it has seen."""

    @property
    def num_running(self) -> int:
        return int((self.lengths > len(self.versions)).sum())


class TimedEngine(StandInEngine):
    """Receives weights as `StandInEngine` does, and samples by waiting."""

    def __init__(self, spec: EngineSpec, config: GeneratorConfig) -> None:
        super().__init__(spec, config)
        self._rng = np.random.default_rng(spec.seed)
        self._groups: list[_Group] = []
        self._decoding: asyncio.Task[None] | None = None
        self._step = asyncio.Lock()
        """Held for each decode step."""
        self._resumed = asyncio.Event()
        self._resumed.set()

    async def sample(self, request_id: str, prompt_token_ids: list[int], sampling: Sampling) -> list[Completion]:
        median = MEDIAN_SHARE * sampling.max_tokens
        drawn = median * np.exp(LENGTH_SIGMA * self._rng.standard_normal(sampling.num_samples))
        lengths = np.clip(np.rint(drawn), 1, sampling.max_tokens).astype(np.int32)
        group = _Group(lengths, asyncio.get_running_loop().create_future())
        self._groups.append(group)
        if self._decoding is None or self._decoding.done():
            self._decoding = asyncio.create_task(self._decode())
        await group.done
        versions = np.asarray(group.versions, np.int32)
        return [
            Completion(
                token_ids=np.full(length, TOKEN, np.int32),
                logprobs=np.full(length, LOGPROB, np.float32),
                versions=versions[:length],
                text="",
                finish_reason="length" if length == sampling.max_tokens else "stop",
            )
            for length in lengths
        ]

    async def _decode(self) -> None:
        """Until no group is left. Each step ends at its moment, so that a late wake-up is not added up."""
        loop = asyncio.get_running_loop()
        end_s = loop.time()
        while self._groups:
            if not self._resumed.is_set():
                await self._resumed.wait()
                end_s = loop.time()
            async with self._step:
                num_running = sum(group.num_running for group in self._groups)
                end_s += DECODE_BASE_S + DECODE_PER_SEQUENCE_S * num_running
                await asyncio.sleep(max(0.0, end_s - loop.time()))
                for group in self._groups:
                    group.versions.append(self._version)
            for group in [group for group in self._groups if not group.num_running]:
                self._groups.remove(group)
                if not group.done.done():  # else whoever asked has given up
                    group.done.set_result(None)

    async def pause(self, recompute_kv: bool) -> None:
        self._resumed.clear()
        async with self._step:
            pass
        await super().pause(recompute_kv)

    async def resume(self, version: int) -> None:
        await super().resume(version)
        self._resumed.set()
