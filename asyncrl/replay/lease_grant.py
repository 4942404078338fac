"""The grant of a training prompt, as it goes to a generator."""

from __future__ import annotations

from asyncrl.config.schema import Config
from asyncrl.ledger.records import LeaseRecord
from asyncrl.transport.messages.rollouts import LeaseGrant
from asyncrl.types import Prompt


def train_grant(lease: LeaseRecord, prompt: Prompt, config: Config) -> LeaseGrant:
    """`prompt`, drawn as the lease's admission index, to be sampled as the config says."""
    return LeaseGrant(
        lease_id=lease.lease_id,
        index=lease.index,
        kind="train",
        row=prompt.row,
        token_ids=prompt.token_ids,
        text=prompt.text,
        answer=prompt.answer,
        columns=prompt.columns,
        num_samples=config.algorithm.group_size,
        temperature=config.generator.temperature,
        seed=_sampling_seed(config.run.seed, lease.index),
        timeout_s=config.replay.lease_timeout_s,
    )


def _sampling_seed(run_seed: int, index: int) -> int:
    """A seed per prompt draw that depends on the run's seed and the draw alone (vLLM adds the sample's number)."""
    return (run_seed * 1_000_003 + index * 7_919 + 12_345) % (1 << 62)
