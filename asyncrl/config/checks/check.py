"""What one key allows another to be: every impossible configuration is refused before anything starts.

`check` collects all problems, so that a user mends a config once. A file a section holds them. Types and unknown keys
are the part of `config/load.py`; what the cluster has room for is that of `cluster/topology.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from asyncrl.config.checks.algorithm import algorithm_problems
from asyncrl.config.checks.cluster import cluster_problems
from asyncrl.config.checks.data import data_problems
from asyncrl.config.checks.devices import Device, device_problems
from asyncrl.config.checks.environment import environment_problems
from asyncrl.config.checks.generator import model_problems, sampling_problems
from asyncrl.config.checks.learner import batch_problems, checkpointing_problems, compile_problems, context_problems
from asyncrl.config.checks.lora import lora_problems, target_problems
from asyncrl.config.checks.publish import cadence_problems, publish_problems
from asyncrl.config.checks.replay import staleness_problems, window_problems
from asyncrl.config.checks.run import run_problems
from asyncrl.config.checks.values import choice_problems, range_problems
from asyncrl.config.checks.warnings import config_warnings
from asyncrl.config.schema import Config
from asyncrl.errors import ConfigError

if TYPE_CHECKING:  # it loads torch
    from asyncrl.config.model_shape import ModelShape


def check(config: Config, device: Device, shape: ModelShape | None = None) -> list[str]:
    """Refuse what cannot run; return warnings about what can but should not.

    Args:
        config: as `load.load` gave it.
        device: what the roles run on, resolved.
        shape: of the model, where it is known; without it the checks against the model are left out.

    Raises:
        ConfigError: at least one problem; the message has a line for each, with the keys, the numbers and the fix.
    """
    problems = [
        *choice_problems(config),
        *range_problems(config),
        *batch_problems(config),
        *checkpointing_problems(config),
        *compile_problems(config),
        *context_problems(config),
        *lora_problems(config),
        *algorithm_problems(config),
        *staleness_problems(config.replay),
        *window_problems(config),
        *cadence_problems(config),
        *sampling_problems(config),
        *environment_problems(config),
        *run_problems(config),
        *data_problems(config.data),
        *device_problems(config, device),
        *cluster_problems(config.cluster),
        *publish_problems(config, device),
    ]
    if shape is not None:
        problems += model_problems(config, device, shape) + target_problems(config.lora, shape)
    if problems:
        raise ConfigError("\n".join(problems))
    return config_warnings(config, device)
