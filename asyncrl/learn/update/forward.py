"""A mini-batch through a model: this rank's micro-batches, in an order and number on which all ranks agree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from asyncrl.learn.policy.context_parallel import Context, join
from asyncrl.learn.policy.model import BaseOfPolicy, PolicyModel
from asyncrl.learn.update.mini_batches import MiniBatch
from asyncrl.learn.update.packing import Layout, MicroBatch, own_micro_batches
from asyncrl.learn.update.row_part import row_part


@dataclass
class Forward:
    """How one rank runs its share of a mini-batch."""

    mesh: DeviceMesh
    """One dimension, the ranks among which sequences are shared out."""
    layout: Layout
    hidden_size: int
    """Of the model: it says what attention costs beside the matrix products."""
    micro_batch_tokens: int
    """Of one rank."""
    temperature: float
    context: Context | None = None
    """The ranks that compute this one's micro-batches together, each a part of every row; None = it does so alone."""

    def micro_batches(self, mini_batch: MiniBatch, sequences: Sequence[int]) -> Iterator[MicroBatch]:
        """This rank's share of `sequences`, on its device; the same micro-batches whenever it is asked again."""
        rank, num_ranks = self.mesh.get_local_rank(), self.mesh.size()
        budget = self.micro_batch_tokens * (1 if self.context is None else self.context.size)
        for micro_batch in own_micro_batches(
            mini_batch, sequences, self.layout, self.hidden_size, budget, rank, num_ranks
        ):
            yield micro_batch.to(torch.device(self.mesh.device_type))

    def run(self, model: PolicyModel | BaseOfPolicy, micro_batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Log-probabilities [T] and entropies [T] of the micro-batch's action tokens. Collective."""
        if self.context is None:
            return self._outputs(model, micro_batch)
        part, is_here = row_part(micro_batch, self.context.rank, self.context.size)
        logprobs, entropies = self._outputs(model, part)
        return join(logprobs[:-1], is_here, self.context), join(entropies[:-1], is_here, self.context)

    @torch.no_grad()
    def logprobs(self, model: PolicyModel | BaseOfPolicy, micro_batch: MicroBatch) -> Tensor:
        """[T] log-probabilities alone, without gradient. Collective."""
        return self.run(model, micro_batch)[0]

    def _outputs(self, model: PolicyModel | BaseOfPolicy, micro_batch: MicroBatch) -> tuple[Tensor, Tensor]:
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
            self.context,
        )
        return outputs
