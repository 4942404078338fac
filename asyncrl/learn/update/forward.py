"""A mini-batch through a model: this rank's micro-batches, in an order and number on which all ranks agree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from asyncrl.learn.policy.model import BaseOfPolicy, PolicyModel
from asyncrl.learn.update.mini_batches import MiniBatch
from asyncrl.learn.update.packing import Layout, MicroBatch, own_micro_batches


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
        rank, num_ranks = self.mesh.get_local_rank(), self.mesh.size()
        for micro_batch in own_micro_batches(
            mini_batch, sequences, self.layout, self.hidden_size, self.micro_batch_tokens, rank, num_ranks
        ):
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
            micro_batch.rows,
            micro_batch.actions.supports,
        )
        return outputs

    @torch.no_grad()
    def logprobs(self, model: PolicyModel | BaseOfPolicy, micro_batch: MicroBatch) -> Tensor:
        """[T] log-probabilities alone, without gradient. Collective."""
        return self.run(model, micro_batch)[0]
