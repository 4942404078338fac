"""How much a learner computes for each token of a batch, in forward passes. Pure.

A forward pass is 2·P FLOPs a token. A backward pass takes two more, or with adapters one: the gradients of frozen
weights are not computed. The keys that ask for more passes are those that `learn/update/step.py` reads.
"""

from __future__ import annotations

from asyncrl.config.schema import Config


def forward_passes(config: Config) -> float:
    """Of one step, together: forward passes, and backward passes as so many of them."""
    learner, algorithm = config.learner, config.algorithm
    update = 2.0 if config.lora.rank is not None else 3.0
    if learner.gradient_checkpointing and learner.checkpointing_keeps != "matmuls":
        update += 1
    if algorithm.rejection == "second_moment" or algorithm.correction_normalise:
        update += 1  # what has to be known of a mini-batch before its backward pass
    has_reference = algorithm.kl_coef != 0
    if has_reference and algorithm.kl_in == "loss":
        update += 1
    before = 1.0 if has_reference and algorithm.kl_in == "reward" else 0.0
    if algorithm.loss == "decoupled_ppo" and algorithm.proximal == "recompute":
        before += 1.0 if learner.epochs_per_batch > 1 else 1 - 1 / num_mini_batches(config)
    return before + learner.epochs_per_batch * update


def num_mini_batches(config: Config) -> int:
    """A pass over a batch makes so many updates."""
    return config.learner.batch_size // (config.learner.mini_batch_size or config.learner.batch_size)
