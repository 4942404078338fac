"""An engine with one bug: it takes no notice of seeds."""

from __future__ import annotations

from dataclasses import replace

from asyncrl.generate.engines.base import Sampling
from asyncrl.types import Completion
from bench.standin.engine import StandInEngine


class CarelessEngine(StandInEngine):
    async def sample(self, request_id: str, prompt_token_ids: list[int], sampling: Sampling) -> list[Completion]:
        return await super().sample(request_id, prompt_token_ids, replace(sampling, seed=None))
