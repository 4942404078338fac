"""A mini-batch through a model: this rank's micro-batches, in an order and number on which all ranks agree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from asyncrl.learn.policy.model import BaseOfPolicy, PolicyModel
from asyncrl.learn.update.mini_batches import MiniBatch
from asyncrl.learn.update.packing import (
    Layout,
    MicroBatch,
    build_micro_batch,
    cost_of,
    num_tokens_of,
    plan_micro_batches,
    rows_of,
)

ROW_TOKENS_PER_HIDDEN = 2
"""The longest row that completions share: a token's matrix products cost about 24 · hidden², its attention under a mask
4 · hidden · (tokens of the row), at twice the hidden size a third of the products."""


@dataclass
class Forward:
    """How one rank runs its share of a mini-batch."""

    mesh: DeviceMesh
    """One dimension, all learner ranks."""
    layout: Layout
    hidden_size: int
    """Of the model: it says what attention costs beside the matrix products."""
    micro_batch_tokens: int
    temperature: float

    def micro_batches(self, mini_batch: MiniBatch, sequences: Sequence[int]) -> Iterator[MicroBatch]:
        """This rank's share of `sequences`, on its device; the same micro-batches whenever it is asked again."""
        limit = min(ROW_TOKENS_PER_HIDDEN * self.hidden_size, self.micro_batch_tokens)
        rows = rows_of(mini_batch, sequences, self.layout, self.mesh.size(), limit)
        lengths = [num_tokens_of(mini_batch, row) for row in rows]
        costs = [cost_of(length, self.hidden_size) for length in lengths]
        plan = plan_micro_batches(lengths, costs, self.mesh.size(), self.micro_batch_tokens, self.layout)
        own = plan[self.mesh.get_local_rank()]
        for position, chosen in enumerate(own):
            micro_batch = build_micro_batch(mini_batch, [rows[row] for row in chosen], self.layout)
            micro_batch = replace(micro_batch, is_last=position == len(own) - 1)
            yield micro_batch.to(torch.device(self.mesh.device_type))

    def run(self, model: PolicyModel | BaseOfPolicy, micro_batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Log-probabilities [T] and entropies [T] of the micro-batch's action tokens. Collective."""
        outputs: tuple[Tensor, Tensor] = model(
            micro_batch.input_ids,
            micro_batch.position_ids,
            micro_batch.attention_mask,
            micro_batch.indices,
            micro_batch.actions.targets,
            self.temperature,
            micro_batch.segments,
        )
        return outputs

    @torch.no_grad()
    def logprobs(self, model: PolicyModel | BaseOfPolicy, micro_batch: MicroBatch) -> Tensor:
        """[T] log-probabilities alone, without gradient. Collective."""
        return self.run(model, micro_batch)[0]
