"""Each token is drawn by its request's seed and its position alone, so company in a batch changes nothing.

SGLang takes seeds in its deterministic mode alone, which its CPU attention does not have, nor some of its GPU ones.
"""

from __future__ import annotations

from typing import Any

import torch

from asyncrl.generate.engines.sglang.draw import draw
from asyncrl.generate.engines.sglang.imports import Sampler, SamplingBatchInfo


def install() -> None:
    """In the process that samples, before SGLang's scheduler is made there."""
    make = SamplingBatchInfo.from_schedule_batch.__func__

    def with_seeds(cls: type[SamplingBatchInfo], batch: Any, vocab_size: int) -> SamplingBatchInfo:
        info: SamplingBatchInfo = make(cls, batch, vocab_size)
        seeds = [request.sampling_params.sampling_seed for request in batch.reqs]
        info.sampling_seed = torch.tensor(seeds, dtype=torch.int64).to(batch.device, non_blocking=True)
        return info

    SamplingBatchInfo.from_schedule_batch = classmethod(with_seeds)
    Sampler._sample_from_probs = _sample_from_probs


def _sample_from_probs(
    self: Sampler, probs: torch.Tensor, info: SamplingBatchInfo, positions: torch.Tensor, simple: bool
) -> tuple[torch.Tensor, None]:
    """Instead of SGLang's. Of truncated sampling only greedy comes here, see `SglangEngine.sample`."""
    drawn = draw(probs, info.sampling_seed, positions)
    if not simple:
        drawn = torch.where(info.top_ks <= 1, probs.argmax(dim=-1), drawn)
    return drawn.to(torch.int32), None
