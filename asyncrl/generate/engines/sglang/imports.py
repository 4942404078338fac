"""All that asyncrl takes from SGLang 0.5.23; much of it is private. Otherwise its import leaves this process as it was.

SGLang decides while it is imported whether it is for a CPU.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import nullcontext

import torch

from asyncrl.generate.engines.sglang.missing_packages import stand_ins

ON_CPU = not torch.accelerator.is_available()

if ON_CPU:
    os.environ["SGLANG_USE_CPU_ENGINE"] = "1"
# Its longest sequence is a few tokens shorter than the context that it is given; ours may be as long as the model's.
os.environ["SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN"] = "1"

with stand_ins() if ON_CPU else nullcontext():
    from sglang.srt.entrypoints import engine
    from sglang.srt.layers.sampler import Sampler
    from sglang.srt.managers import scheduler
    from sglang.srt.managers.io_struct import (
        ContinueGenerationReqInput,
        GenerateReqInput,
        PauseGenerationReqInput,
        RpcReqInput,
        async_sock_recv,
        async_sock_send,
    )
    from sglang.srt.runtime_context import get_parallel
    from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo

asyncio.set_event_loop_policy(None)  # SGLang makes it uvloop's

__all__ = [
    "ON_CPU",
    "ContinueGenerationReqInput",
    "GenerateReqInput",
    "PauseGenerationReqInput",
    "RpcReqInput",
    "Sampler",
    "SamplingBatchInfo",
    "async_sock_recv",
    "async_sock_send",
    "engine",
    "get_parallel",
    "scheduler",
]
