"""Small settings for simulations."""

from __future__ import annotations

from asyncrl.config.load import load
from asyncrl.config.schema import Config
from asyncrl.simulate.timings import Timings, Workload

TIMINGS = Timings(
    decode_base_s=0.01,
    decode_per_sequence_s=0.001,
    prefill_per_token_s=0.0005,
    max_sequences=1000,
    train_base_s=0.1,
    train_per_token_s=0.001,
    gather_s=0.02,
    transfer_s=0.3,
    stall_s=0.05,
)

WORKLOAD = Workload(prompt_tokens=10, length_median=50.0, length_sigma=0.8, max_tokens=200)


def small_config(*overrides: str) -> Config:
    sizes = ["learner.batch_size=4", "algorithm.group_size=2", "generator.max_groups_in_flight=4"]
    return load(None, ["model.path=tiny", "data.train=arithmetic", *sizes, *overrides])
