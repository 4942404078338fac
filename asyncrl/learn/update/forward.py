"""A mini-batch through a model: this rank's micro-batches, in an order and number on which all ranks agree."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from asyncrl.learn.policy.model import PolicyModel
from asyncrl.learn.update.mini_batches import MiniBatch
from asyncrl.learn.update.packing import Layout, MicroBatch, build_micro_batch, plan_micro_batches


@dataclass
class Forward:
    """How one rank runs its share of a mini-batch."""

    mesh: DeviceMesh
    """One dimension, all learner ranks."""
    layout: Layout
    micro_batch_tokens: int
    temperature: float

    def micro_batches(self, mini_batch: MiniBatch, sequences: Iterable[int]) -> Iterator[MicroBatch]:
        """This rank's share of `sequences`, on its device; the same micro-batches whenever it is asked again."""
        lengths = {sequence: mini_batch.num_tokens(sequence) for sequence in sequences}
        plan = plan_micro_batches(lengths, self.mesh.size(), self.micro_batch_tokens, self.layout)
        for chosen in plan[self.mesh.get_local_rank()]:
            yield build_micro_batch(mini_batch, chosen, self.layout).to(torch.device(self.mesh.device_type))

    def run(self, model: PolicyModel, micro_batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Log-probabilities [T] and entropies [T] of the micro-batch's action tokens. Collective."""
        outputs: tuple[Tensor, Tensor] = model(
            micro_batch.input_ids,
            micro_batch.position_ids,
            micro_batch.attention_mask,
            micro_batch.indices,
            micro_batch.actions.targets,
            self.temperature,
        )
        return outputs

    @torch.no_grad()
    def logprobs(self, model: PolicyModel, micro_batch: MicroBatch) -> Tensor:
        """[T] log-probabilities alone, without gradient. Collective."""
        return self.run(model, micro_batch)[0]
