"""What can run and should not."""

from __future__ import annotations

from asyncrl.config.checks.algorithm import algorithm_warnings
from asyncrl.config.checks.cluster import cluster_warnings
from asyncrl.config.checks.devices import Device
from asyncrl.config.schema import Config


def config_warnings(config: Config, device: Device) -> list[str]:
    warnings = [*algorithm_warnings(config), *cluster_warnings(config)]
    if device == "cpu" and config.model.dtype == "bfloat16":
        warnings.append("model.dtype=bfloat16 on CPU is 5 to 9 times slower than float32 without a bfloat16 ISA")
    if config.run.eval_samples > 1 and config.run.eval_temperature == 0:
        warnings.append(
            f"run.eval_samples={config.run.eval_samples} with run.eval_temperature=0: greedy completions are all alike"
        )
    if config.data.eval is not None and config.run.eval_every == 0:
        warnings.append("data.eval is set but run.eval_every=0: it is never used")
    if config.run.no_progress_timeout_s <= config.replay.lease_timeout_s:
        warnings.append(
            f"run.no_progress_timeout_s={config.run.no_progress_timeout_s} is not above replay.lease_timeout_s="
            f"{config.replay.lease_timeout_s}: one prompt that takes its whole time can end the run"
        )
    return warnings
