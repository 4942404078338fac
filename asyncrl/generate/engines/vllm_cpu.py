"""vLLM on CPU starts with `fork` instead of `spawn`, in one process fewer, compiling nothing. A shim for CPU alone.

vLLM's CPU platform starts its engine and workers with `spawn`, also inside a Ray actor. That imports everything again:
47 s instead of 15 s to the first token on two cores. Fork is safe here because OMP_NUM_THREADS=1 is set before Python
starts, so no OpenMP pool exists that a fork could break.

Without tensor parallelism the worker computes in the engine's core, as on a GPU. vLLM's CPU platform gives it a process
of its own, because it sets OpenMP's threads there; here they are set before Python starts. The two would wait for each
other by spinning: 0.26 – 0.30 ms of CPU a token instead of 0.15 – 0.20 with 32 requests in flight (measured by
`bench/pipeline/engines.py`, docs/performance.md).

Although `enforce_eager` is on, it compiles a few lines of its sampler with torch.compile at the first token: 2 s, and
8 s on a machine where it has never run.

Expiry: vLLM 0.32; remove when fork can be asked for by a public option, or spawn starts in less than ~20 s, when its
CPU platform leaves the executor "uni", and when `enforce_eager` holds for the sampler.
"""

from __future__ import annotations

import os

import torch
from vllm.config import VllmConfig
from vllm.utils import system_utils
from vllm.v1.executor import multiproc_executor


def start_fast(engine_config: VllmConfig) -> None:
    """Call between `create_engine_config()`, which forces spawn and a worker's process, and the engine's start."""
    if engine_config.parallel_config.world_size == 1:
        engine_config.parallel_config.distributed_executor_backend = "uni"

    def leave_as_is() -> None:
        """Instead of vLLM's check, which forces spawn inside a Ray actor."""

    system_utils._maybe_force_spawn = leave_as_is
    multiproc_executor._maybe_force_spawn = leave_as_is
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"
    torch.compiler.set_stance("force_eager")  # in the forks too
