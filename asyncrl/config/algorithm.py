"""The `algorithm` section of the configuration. Formulas, papers and other systems' names: docs/algorithms.md."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class AlgorithmConfig:
    """The objective. μ is the policy that sampled a token, π_θ the one being updated, ρ = π_θ/μ."""

    group_size: int = 8
    """G: completions per prompt."""

    advantage: str = "grpo"
    """grpo ((r − mean) / std over the group) | dr_grpo (r − mean) | rloo (r − mean of the others) | maxrl
    ((r − mean) / mean) | pass_at_k (of the best of pass_k completions) | gdpo (grpo of each reward term, their weighted
    sum ÷ its std over the batch) | reinforce_pp (whitened over the batch) | reinforce_pp_baseline (r − mean, then
    whitened)."""
    pass_k: int = 4
    """k of advantage=pass_at_k, below group_size; 1 is grpo."""
    credit: str = "episode"
    """Only with an environment: episode (all its tokens share the advantage of its reward) | turn (a token has that of
    what is paid from its turn on, compared with the same turn of the group's other episodes)."""
    zero_variance: str = "keep"
    """Groups whose rewards are all equal: keep (counted in the means) | filter (not trained, not counted) | refill
    (replay replaces them by further prompts, so that a batch has batch_size groups with a signal)."""
    max_refill_batches: int = 10
    """Only with zero_variance=refill: one step looks through this many batches of prompts; of those drawn after them
    every group takes its place, and one of equal rewards is treated as with filter."""
    overlong: str = "none"
    """Completions cut at generator.max_tokens: none | mask (not trained) | penalty (the reward falls by up to 1 over
    the last overlong_buffer_tokens)."""
    overlong_buffer_tokens: int = 0
    """Only with overlong=penalty."""

    loss: str = "dppo_tv"
    """dppo_tv (the best at every lag above 4 in docs/off_policy.md) | ppo_clip | decoupled_ppo (clips π_θ/π_prox,
    corrects π_prox/μ) | gspo | cispo | sapo (a soft gate in place of the clip) | reinforce."""
    clip_lower: float = 0.2
    """dppo_tv: bounds of the difference π_θ − μ; else the ratio is clipped to [1 − clip_lower, 1 + clip_upper]."""
    clip_upper: float = 0.2
    dual_clip: float | None = None
    """Bound of −loss/A where A < 0, above 1; null = none. ppo_clip and decoupled_ppo."""
    sapo_temperature_positive: float = 1.0
    """Only with loss=sapo: how fast the gate closes as the ratio leaves 1, where A > 0."""
    sapo_temperature_negative: float = 1.05
    """The same where A ≤ 0; higher, because such tokens are the likelier to upset training."""
    proximal: str = "recompute"
    """π_prox of decoupled_ppo: recompute (the policy at the start of the step, one more forward pass for each
    mini-batch after the first) | interpolate (no forward pass: in a step's first update it is π_θ, as it should be,
    later between μ and π_θ by the token's lag)."""
    aggregation: str = "token_mean"
    """token_mean (over the global mini-batch) | sequence_mean (of token means) | sequence_sum (÷ aggregation_constant,
    mean over sequences) | prompt_mean (of token means)."""
    aggregation_constant: int | None = None
    """Divisor of sequence_sum, in tokens; null = generator.max_tokens."""

    correction: str = "none"
    """none | {token, sequence, geometric}_{truncate, mask}: whose ratio is held to the bounds (the token's, the product
    over its sequence, the geometric mean over its sequence), and how: the clamped ratio is the token's whole weight, or
    what is outside is dropped. IcePop is token_mask with 0.5 and 5."""
    correction_lower: float = 0.0
    """0 = no lower bound."""
    correction_upper: float = 2.0
    correction_lag_decay: float = 1.0
    """γ: at lag d the bounds' distances from 1 are multiplied by γ^d; 1 = the same bounds at every lag. A sequence has
    the lag of its oldest trained token."""
    correction_normalise: bool = False
    """Divide the weights by their mean over the trained tokens of the mini-batch, at the price of one more forward
    pass."""
    correction_veto: float = 0.0
    """A sequence with a token whose ratio is below this is not trained; 0 = off."""
    rejection: str = "none"
    """What is not trained because π_θ is too far from μ, together with any correction: none | {token, sequence_mean,
    sequence_max}_{k2, k3} (by an estimate of KL(μ ‖ π_θ): of the token, its sequence's mean, its sequence's largest) |
    negative_sequence_k1 (a sequence of A < 0 by its mean log μ/π_θ, as in DeepSeek-V3.2) | second_moment (M2PO: the
    mini-batch's tokens of largest (log ρ)², until its mean over the others is within the bound; one more forward pass).
    """
    rejection_bound: float | None = None
    """Of the divergence, in nats (second_moment: of the mean of (log ρ)², 0.04 in the paper); what is above it is
    dropped. Needed with any rejection."""
    behaviour_coef: float = 0.0
    """Weight of (log ρ)² in the loss, which holds π_θ near the policy that sampled."""

    kl_coef: float = 0.0
    """Weight of the KL divergence to the reference; > 0 loads it."""
    reference: str = "frozen"
    """frozen (the starting model) | ema (an exponential moving average of the policy, which begins there)."""
    reference_ema_decay: float = 0.99
    """Share of itself that an EMA reference keeps at each step."""
    kl_estimator: str = "k3"
    """k1 | k2 | k3 (from 10 on its tangent)."""
    kl_in: str = "loss"
    """loss (of π_θ) | reward (of μ, summed over the completion)."""
    kl_unbiased: bool = False
    """Importance-weight the KL in the loss (by at most 20), with the gradient of the divergence for every estimator."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus; with entropy_target the one to begin with."""
    entropy_target: float | None = None
    """Entropy, in nats, below which the bonus acts: entropy_coef then rises by entropy_coef_step after each step whose
    mean entropy is at most this, and falls after each other; null = entropy_coef is constant and always acts."""
    entropy_coef_step: float = 0.005
    entropy_coef_max: float = 1.0
