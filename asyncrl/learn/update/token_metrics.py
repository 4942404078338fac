"""All-reduced means over the trained tokens of a step, for all of them and by their lag.

`policy/NAME` covers every lag, `lag_2/NAME` one bucket of lags, and `mismatch/NAME` the tokens of lag 0 in the step's
first update, where π_θ is still the policy that sampled them and what differs is the training and the inference engine.
`engine/ENGINE/mismatch/NAME` are those of one engine, where generators run different ones:

    ratio_mean, ratio_max     ρ = π_θ/μ
    effective_sample_size     (Σρ)² / (N·Σρ²): 1 on policy, 1/N when one token outweighs all others; NaN of none
    kl_behaviour{,_k1}        KL(μ ‖ π_θ) by k3 and by k1
    clip_fraction             tokens whose gradient the loss's clip removed (cispo: whose weight it bounded)
    masked_fraction           tokens that the importance correction dropped
    truncated_fraction        tokens whose importance weight it cut
    entropy                   of π_θ, nats

`tokens/packing_efficiency` is the share of the computed positions that held a token and not padding; what attention
alone pads does not count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from asyncrl.learn.update.batch_metrics import Metrics
from asyncrl.learn.update.mini_batches import ActionTokens

LAG_BUCKETS = ("lag_0", "lag_1", "lag_2", "lag_3_4", "lag_5_8", "lag_9_16", "lag_17_up")
"""Twice as wide from one to the next, because what a version changes matters less the more have passed."""
LAST_LAGS = (0, 1, 2, 4, 8, 16)
"""The largest lag of each bucket but the last."""
FAMILIES = (*LAG_BUCKETS, "mismatch")
MISMATCH = len(LAG_BUCKETS)


class TokenMetrics:
    """Sums over the trained tokens of a step, on one rank; `reduce` makes global metrics of them.

    Args:
        engines: of the batch.
    """

    def __init__(self, device: torch.device, engines: Sequence[str] = ()) -> None:
        self._families = (*FAMILIES, *(f"engine/{engine}/mismatch" for engine in engines))
        self._num_updates = 0
        self._num_tokens, self._num_positions = 0, 0
        self._losses: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}
        """Statistic → [families] float64."""
        self._ratio_max = torch.zeros(len(self._families), dtype=torch.float64, device=device)
        self._last_lags = torch.tensor(LAST_LAGS, device=device)

    def begin_update(self) -> None:
        """What is added from now on belongs to the step's next update."""
        self._num_updates += 1

    def count_places(self, num_tokens: int, num_positions: int) -> None:
        """Of one pass: `num_positions` with padding."""
        self._num_tokens += num_tokens
        self._num_positions += num_positions

    def add(self, losses: dict[str, Tensor], stats: dict[str, Tensor], actions: ActionTokens) -> None:
        """One micro-batch: `losses` are scalars to be summed, `stats` [T], of which `ratio` is one, to be averaged."""
        for name, loss in losses.items():
            self._losses[name] = self._losses.get(name, 0.0) + loss.detach().double()
        self._add_stats(stats, torch.bucketize(actions.lags, self._last_lags), actions.mask)
        if self._num_updates == 1:
            fresh = actions.mask & (actions.lags == 0)
            self._add_stats(stats, torch.full_like(actions.lags, MISMATCH), fresh)
            if len(self._families) > len(FAMILIES):
                self._add_stats(stats, len(FAMILIES) + actions.engines.clamp(min=0), fresh & (actions.engines >= 0))

    def _add_stats(self, stats: dict[str, Tensor], families: Tensor, mask: Tensor) -> None:
        """`stats` of the tokens in `mask`, each to its family; all are [T]."""
        ratio = stats["ratio"].double()
        for name, value in {**stats, "tokens": torch.ones_like(ratio), "ratio_squared": ratio.square()}.items():
            previous = self._sums.get(name, torch.zeros_like(self._ratio_max))
            self._sums[name] = previous.index_add(0, families, value.double().where(mask, 0.0))
        self._ratio_max = self._ratio_max.scatter_reduce(0, families, ratio.where(mask, 0.0), "amax")

    def reduce(self, group: dist.ProcessGroup) -> Metrics:
        """Collective. Losses are means over the step's updates, statistics over its trained tokens.

        Every rank has the same names, because every rank runs every micro-batch, idle ones included.
        """
        if not self._sums:
            return {"tokens/trained": 0.0}
        losses, sums = torch.stack(list(self._losses.values())), torch.stack(list(self._sums.values()))
        places = sums.new_tensor([self._num_tokens, self._num_positions])
        for tensor in (losses, sums, places):
            dist.all_reduce(tensor, group=group)
        dist.all_reduce(self._ratio_max, dist.ReduceOp.MAX, group=group)
        metrics: Metrics = {
            name: loss / self._num_updates for name, loss in zip(self._losses, losses.tolist(), strict=True)
        }
        by_name, ratio_max = dict(zip(self._sums, sums.cpu(), strict=True)), self._ratio_max.cpu()
        overall = {name: value[:MISMATCH].sum().item() for name, value in by_name.items()}
        metrics["tokens/trained"] = overall["tokens"]
        metrics["tokens/packing_efficiency"] = (places[0] / places[1]).item()
        metrics |= _means("policy", overall, ratio_max[:MISMATCH].max())
        for position, family in enumerate(self._families):
            if by_name["tokens"][position] > 0:
                of_family = {name: value[position].item() for name, value in by_name.items()}
                metrics |= {f"{family}/tokens": of_family["tokens"]}
                metrics |= _means(family, of_family, ratio_max[position])
        return metrics


def _means(family: str, sums: dict[str, float], ratio_max: Tensor) -> Metrics:
    """`sums` over tokens of each statistic → the family's metrics."""
    num_tokens = max(1.0, sums["tokens"])
    metrics: Metrics = {
        f"{family}/{name}": value / num_tokens
        for name, value in sums.items()
        if name not in ("tokens", "ratio", "ratio_squared")
    }
    squares = num_tokens * sums["ratio_squared"]
    return metrics | {
        f"{family}/ratio_mean": sums["ratio"] / num_tokens,
        f"{family}/ratio_max": ratio_max.item(),
        f"{family}/effective_sample_size": sums["ratio"] ** 2 / squares if squares > 0 else math.nan,
    }
