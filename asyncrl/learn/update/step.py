"""One training step: a batch → forward and backward over micro-batches → optimizer updates → metrics.

Every rank calls `Learner.train` with the same whole batch and takes its own share of the sequences. The result does not
depend on the number of ranks, on the micro-batch size or on the layout, up to rounding.
"""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from asyncrl.config.algorithm import AlgorithmConfig
from asyncrl.config.reward_labels import reward_weights
from asyncrl.config.schema import Config
from asyncrl.learn.deadlines import rank_timeout_s
from asyncrl.learn.policy import varlen_attention
from asyncrl.learn.policy.context_parallel import split_ranks
from asyncrl.learn.policy.model import BaseOfPolicy, PolicyModel, load_policy, load_reference, move_towards
from asyncrl.learn.policy.optimizer import build_optimizer, learning_rate
from asyncrl.learn.policy.sharding import keep_gathered
from asyncrl.learn.update.batch_metrics import Metrics, batch_metrics
from asyncrl.learn.update.entropy_control import EntropyControl
from asyncrl.learn.update.forward import Forward
from asyncrl.learn.update.mini_batches import MiniBatch, mini_batches
from asyncrl.learn.update.objective import objective
from asyncrl.learn.update.packing import Layout, MicroBatch
from asyncrl.learn.update.prepass import Known, Proximal, completion_kl, known_before_backward, proximal_logprobs
from asyncrl.learn.update.quarantine import quarantine_broken_logprobs
from asyncrl.learn.update.token_metrics import TokenMetrics
from asyncrl.run.trainer_state import TrainerState
from asyncrl.types import Batch

log = logging.getLogger(__name__)


class Learner:
    """Policy, reference and optimizer of one rank.

    Args:
        config: the whole configuration.
        mesh: one dimension, all learner ranks; the caller has initialised the process group (with learner.offload on
            GPU it needs the backend "cpu:gloo,cuda:nccl", since gradient norms are then reduced on the CPU).
        num_steps: steps of the run, for the learning-rate schedule.

    Raises:
        DataError, ConfigError: the model cannot be loaded or trained.
    """

    def __init__(self, config: Config, mesh: DeviceMesh, num_steps: int) -> None:
        if config.learner.context_parallel > 1:  # only packed rows can be cut
            config = replace(config, model=replace(config.model, attention=varlen_attention.NAME))
        self.config = config
        self.mesh = mesh
        timeout_s = rank_timeout_s(config.run.step_timeout_s)
        data_mesh, context = split_ranks(mesh, config.learner.context_parallel, timeout_s)
        self.device = torch.device(mesh.device_type)
        learner = config.learner
        self.policy = load_policy(
            config.model,
            mesh,
            lora=config.lora,
            learner=learner,
            seed=config.run.seed,
        )
        self.reference = _reference(config, mesh, self.policy)
        self.optimizer = build_optimizer(self.policy.parameters(), learner)
        self.forward = Forward(
            data_mesh,
            layout=_layout(self.policy),
            hidden_size=self.policy.hf.config.get_text_config().hidden_size,
            micro_batch_tokens=learner.known_micro_batch_tokens,
            temperature=config.generator.temperature,
            context=context,
        )
        self.mini_batch_size = learner.mini_batch_size or learner.batch_size
        updates_per_step = learner.epochs_per_batch * (learner.batch_size // self.mini_batch_size)
        self.num_warmup = learner.warmup_steps * updates_per_step
        self.num_updates = num_steps * updates_per_step
        self.update = 0
        """Updates made so far, skipped ones included."""
        self.entropy = EntropyControl.start(config.algorithm)
        """Of algorithm.entropy_target; without one it stays as it is."""

    def train(self, batch: Batch) -> Metrics:
        """Train on one batch: epochs_per_batch · batch_size / mini_batch_size updates. Collective.

        An update whose gradient is not finite is skipped and counted, and so is one without a trained token.

        Raises:
            StalenessError: a token is from a version later than the batch's step.
        """
        batch = quarantine_broken_logprobs(batch)
        parts, penalty = self._mini_batches(batch)
        updates = parts * self.config.learner.epochs_per_batch
        tokens = TokenMetrics(self.device, batch.engines)
        grad_norms = [
            self._update(part, proximal, position / len(updates), tokens)
            for position, (part, proximal) in enumerate(zip(updates, self._proximals(parts), strict=True))
        ]
        if isinstance(self.reference, PolicyModel) and self.config.algorithm.reference == "ema":
            move_towards(self.reference, self.policy, self.config.algorithm.reference_ema_decay)
        made = [norm for norm in grad_norms if math.isfinite(norm)]
        metrics = batch_metrics(batch, self.config.replay.max_staleness) | penalty
        metrics |= tokens.reduce(self.forward.mesh.get_group())
        metrics |= self._control_entropy(metrics)
        return metrics | {
            "optim/grad_norm": sum(made) / len(made) if made else math.nan,
            "optim/lr": self.optimizer.param_groups[0]["lr"],
            "optim/skipped_updates": float(len(grad_norms) - len(made)),
        }

    def state(self, step: int) -> TrainerState:
        """What a checkpoint after `step` steps says beside the tensors."""
        if self.config.algorithm.entropy_target is None:
            return TrainerState(step, self.update)
        return TrainerState(step, self.update, self.entropy.coef, self.entropy.acts)

    def restore(self, state: TrainerState) -> None:
        """The learner is as it was when `state` made this."""
        self.update = state.update
        if state.entropy_coef is not None:
            self.entropy = EntropyControl(state.entropy_coef, state.entropy_is_low)

    def _control_entropy(self, metrics: Metrics) -> Metrics:
        """The coefficient that acted in this step; nothing without a target."""
        entropy = metrics.get("policy/entropy")
        if self.config.algorithm.entropy_target is None or not isinstance(entropy, float):
            return {}
        acted = self.entropy.apply(self.config.algorithm).entropy_coef
        self.entropy = self.entropy.after(entropy, self.config.algorithm)
        return {"optim/entropy_coef": acted}

    def _mini_batches(self, batch: Batch) -> tuple[list[MiniBatch], Metrics]:
        """The mini-batches of an epoch, and what the KL took from the rewards, where it does."""
        algorithm = self.config.algorithm
        cut = partial(
            mini_batches,
            batch,
            algorithm,
            max_staleness=self.config.replay.max_staleness,
            mini_batch_size=self.mini_batch_size,
            max_tokens=self.config.generator.max_tokens,
            term_weights=reward_weights(self.config.reward.terms),
        )
        parts = cut()
        if self.reference is None or algorithm.kl_in != "reward":
            return parts, {}
        penalties = algorithm.kl_coef * completion_kl(self.forward, self.reference, parts, algorithm.kl_estimator)
        scored = ~torch.cat([torch.from_numpy(group.rewards) for group in batch.groups]).isnan()
        return cut(penalties=penalties), {"reward/kl_penalty": penalties[scored].mean().item()}

    def _proximals(self, parts: list[MiniBatch]) -> list[Proximal | None]:
        """π_prox for each update, the policy as it is now; the first update needs no forward pass, since it is π_θ."""
        num_epochs = self.config.learner.epochs_per_batch
        if self.config.algorithm.loss != "decoupled_ppo" or self.config.algorithm.proximal != "recompute":
            return [None] * (num_epochs * len(parts))
        num_not_needed = 1 if num_epochs == 1 else 0
        computed = [proximal_logprobs(self.forward, self.policy, part) for part in parts[num_not_needed:]]
        return [None, *computed] if num_epochs == 1 else [None, *computed[1:], *(computed * (num_epochs - 1))]

    def _update(self, mini_batch: MiniBatch, proximal: Proximal | None, progress: float, tokens: TokenMetrics) -> float:
        """One optimizer update. Returns the gradient norm before clipping; not finite = the update was skipped.

        `progress` is the share of the step's updates that are made.
        """
        sequences = mini_batch.trained_sequences
        learner = self.config.learner
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.update, learner, self.num_warmup, self.num_updates)
        self.update += 1
        tokens.begin_update()
        algorithm = self.entropy.apply(self.config.algorithm)
        known = known_before_backward(self.forward, self.policy, mini_batch, proximal, algorithm, progress)
        for position, micro_batch in enumerate(self.forward.micro_batches(mini_batch, sequences)):
            keep_gathered(self.policy, learner.keep_gathered, is_last=micro_batch.is_last)
            of_micro_batch = None if proximal is None else proximal[position]
            self._backward(micro_batch, of_micro_batch, algorithm, progress, known, tokens)
        if not sequences:
            return math.nan
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), learner.max_grad_norm)
        grad_norm = norm.full_tensor().item()  # type: ignore[attr-defined]  # a DTensor
        if math.isfinite(grad_norm):
            self.optimizer.step()
        else:
            largest = mini_batch.actions.advantages.abs().max().item()
            log.warning(
                "update %d is skipped: its gradient norm is %g (the largest advantage is %.3g)",
                self.update,
                grad_norm,
                largest,
            )
        self.optimizer.zero_grad()
        return grad_norm

    def _backward(
        self,
        micro_batch: MicroBatch,
        proximal: Tensor | None,
        algorithm: AlgorithmConfig,
        progress: float,
        known: Known,
        tokens: TokenMetrics,
    ) -> None:
        """Forward and backward; the gradients add up, reduced and sharded after each micro-batch to save memory."""
        reference_logprobs = None
        if self.reference is not None and algorithm.kl_in == "loss":
            reference_logprobs = self.forward.logprobs(self.reference, micro_batch)
        logprobs, entropy = self.forward.run(self.policy, micro_batch)
        losses, stats = objective(
            logprobs,
            entropy,
            micro_batch.actions,
            algorithm,
            reference_logprobs=reference_logprobs,
            proximal_logprobs=proximal,
            progress=progress,
            **known._asdict(),
        )
        # FSDP averages gradients over the ranks, and the weights already hold the global counts: the sum is wanted.
        (losses["loss/total"] * self.mesh.size()).backward()
        tokens.count_places(micro_batch.num_tokens, micro_batch.input_ids.numel())
        tokens.add(losses, stats, micro_batch.actions)


def _reference(config: Config, mesh: DeviceMesh, policy: PolicyModel) -> PolicyModel | BaseOfPolicy | None:
    """What the KL is held against, where there is one: of an adapter the model without it, which costs no memory."""
    if config.algorithm.kl_coef == 0:
        return None
    if config.lora.rank is not None:
        return BaseOfPolicy(policy)
    return load_reference(config.model, mesh, config.learner)


def _layout(policy: PolicyModel) -> Layout:
    """On a CPU the prompt of a group is computed once; on a GPU that is not measured yet."""
    if policy.packs_sequences:
        return "packed"
    return "shared" if policy.takes_rows else "padded"
