"""What has to be known of a whole batch or mini-batch before its first backward pass: forward passes without gradient.

Every function is collective. Each mini-batch is laid out as it will be for the backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from asyncrl.algorithms.kl import KL_ESTIMATORS
from asyncrl.algorithms.rejection import largest_kept_square
from asyncrl.algorithms.segments import segment_sum
from asyncrl.config.algorithm import AlgorithmConfig
from asyncrl.learn.policy.model import BaseOfPolicy, PolicyModel
from asyncrl.learn.update.forward import Forward
from asyncrl.learn.update.mini_batches import ActionTokens, MiniBatch
from asyncrl.learn.update.objective import correction_of, log_ratios

Proximal = list[Tensor]
"""log π_prox, [T] for each micro-batch of this rank."""


def proximal_logprobs(forward: Forward, policy: PolicyModel, mini_batch: MiniBatch) -> Proximal:
    """log π of the policy as it is now."""
    micro_batches = forward.micro_batches(mini_batch, mini_batch.trained_sequences)
    return [forward.logprobs(policy, micro_batch) for micro_batch in micro_batches]


class Known(NamedTuple):
    """What `objective` has to know of a whole mini-batch, over all ranks; as they are, they change nothing."""

    largest_square: float = math.inf
    """Of (log ρ)², what `rejection=second_moment` keeps."""
    mean_correction: float = 1.0
    """Mean corrected importance weight over the trained tokens; 1 when every weight is 0."""


def known_before_backward(
    forward: Forward,
    policy: PolicyModel,
    mini_batch: MiniBatch,
    proximal: Proximal | None,
    algorithm: AlgorithmConfig,
    progress: float,
) -> Known:
    """By one forward pass for both figures, or none where the algorithm needs neither.

    They do not change while gradients add up, since the policy changes only after the last micro-batch. `progress` is
    as in `objective`.
    """
    known = Known()
    if algorithm.rejection != "second_moment" and not algorithm.correction_normalise:
        return known
    passes = list(_log_policies(forward, policy, mini_batch, proximal))
    if algorithm.rejection == "second_moment":
        known = known._replace(largest_square=_largest_square(forward, passes, algorithm, progress))
    if algorithm.correction_normalise:
        known = known._replace(mean_correction=_mean_correction(forward, passes, algorithm, progress, known))
    return known


_LogPolicies = tuple[Tensor, Tensor | None, ActionTokens]
"""[T] log π_θ, [T] log π_prox and the actions of a micro-batch."""


def _log_policies(
    forward: Forward, policy: PolicyModel, mini_batch: MiniBatch, proximal: Proximal | None
) -> Iterator[_LogPolicies]:
    for position, micro_batch in enumerate(forward.micro_batches(mini_batch, mini_batch.trained_sequences)):
        proximal_logprobs = None if proximal is None else proximal[position]
        yield forward.logprobs(policy, micro_batch), proximal_logprobs, micro_batch.actions


def _largest_square(forward: Forward, passes: list[_LogPolicies], algorithm: AlgorithmConfig, progress: float) -> float:
    assert algorithm.rejection_bound is not None
    squares = [torch.zeros(0, device=forward.mesh.device_type)]
    for logprobs, proximal_logprobs, actions in passes:
        log_ratio = log_ratios(logprobs, proximal_logprobs, actions, algorithm, progress)[1]
        squares.append(log_ratio[actions.mask].square())
    return largest_kept_square(_of_all_ranks(torch.cat(squares), forward), algorithm.rejection_bound)


def _mean_correction(
    forward: Forward, passes: list[_LogPolicies], algorithm: AlgorithmConfig, progress: float, known: Known
) -> float:
    sums = torch.zeros(2, dtype=torch.float64, device=forward.mesh.device_type)
    for logprobs, proximal_logprobs, actions in passes:
        correction = correction_of(logprobs, proximal_logprobs, actions, algorithm, progress, known.largest_square)
        sums[0] += correction.weights.where(actions.mask, 0.0).sum(dtype=torch.float64)
        sums[1] += actions.mask.sum()
    dist.all_reduce(sums, group=forward.mesh.get_group())
    total, num_tokens = sums.tolist()
    return total / num_tokens if total > 0 else 1.0


def _of_all_ranks(values: Tensor, forward: Forward) -> Tensor:
    """The values of every rank, one rank after another. Collective."""
    group, num_ranks = forward.mesh.get_group(), forward.mesh.size()
    lengths = [torch.zeros(1, dtype=torch.int64, device=values.device) for _ in range(num_ranks)]
    dist.all_gather(lengths, torch.tensor([len(values)], device=values.device), group=group)
    longest = int(torch.cat(lengths).max())
    gathered = [values.new_zeros(longest) for _ in range(num_ranks)]
    dist.all_gather(gathered, torch.nn.functional.pad(values, (0, longest - len(values))), group=group)
    return torch.cat([each[:length] for each, length in zip(gathered, lengths, strict=True)])


def completion_kl(
    forward: Forward, reference: PolicyModel | BaseOfPolicy, parts: list[MiniBatch], estimator: str
) -> Tensor:
    """[N] estimate of KL(μ ‖ reference) of each completion of the batch, summed over its tokens, on the CPU.

    It is μ's divergence, not π_θ's, because the tokens and their log-probabilities are μ's: no weight is needed.
    """
    device = torch.device(forward.mesh.device_type)
    sums = []
    for part in parts:
        num_sequences = len(part.prompts)
        total = torch.zeros(num_sequences, dtype=torch.float64, device=device)
        for micro_batch in forward.micro_batches(part, range(num_sequences)):
            actions = micro_batch.actions
            estimates = KL_ESTIMATORS[estimator](actions.behaviour_logprobs, forward.logprobs(reference, micro_batch))
            if not micro_batch.is_idle:
                total += segment_sum(estimates.double(), actions.segment_ids, num_sequences)
        sums.append(total)
    result = torch.cat(sums)
    dist.all_reduce(result, group=forward.mesh.get_group())
    return result.float().cpu()
