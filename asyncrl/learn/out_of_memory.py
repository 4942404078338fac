"""A step that does not fit is an answer: which figure, which key, which way out. A restart would only meet it again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from asyncrl.config.schema import Config
from asyncrl.errors import FinalError

_CPU_MESSAGE = "can't allocate memory"
"""Of torch's allocator on the CPU, which has no class of its own for it."""


@contextmanager
def out_of_memory_explained(what: str, config: Config, device_type: str) -> Iterator[None]:
    """
    Args:
        what: is being done, such as `training step 3`.

    Raises:
        FinalError: there was not enough memory for it; says what takes less.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _is_out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
        raise FinalError(
            f"a learner rank ran out of memory while {what}: {reason}. What takes less, most effective first: "
            f"{'; '.join(_ways_out(config, device_type))}. `asyncrl check` estimates each; then go on with the run: "
            "--resume RUN key=value"
        ) from error


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or _CPU_MESSAGE in str(error)


def _ways_out(config: Config, device_type: str) -> list[str]:
    """Those that a run that goes on may take (`commands/resume.py`), with what holds now."""
    learner = config.learner
    ways = []
    num_tokens = learner.known_micro_batch_tokens
    if num_tokens > (least := config.least_micro_batch_tokens):
        ways.append(f"learner.micro_batch_tokens={max(least, num_tokens // 2)} (it is {num_tokens})")
    elif not learner.compile and learner.count % (more := 2 * learner.context_parallel) == 0:
        part = -(-config.least_micro_batch_tokens * learner.context_parallel // more)
        ways.append(f"learner.context_parallel={more} learner.micro_batch_tokens={part}, half a sequence to a rank")
    if learner.keep_gathered != "nothing":
        ways.append("learner.keep_gathered=nothing")
    if not learner.gradient_checkpointing:
        ways.append("learner.gradient_checkpointing=true")
    elif learner.checkpointing_keeps != "nothing":
        ways.append("learner.checkpointing_keeps=nothing")
    if device_type != "cpu" and not learner.offload:
        ways.append("learner.offload=true")
    if device_type != "cpu" and config.algorithm.kl_coef > 0 and not learner.offload_reference:
        ways.append("learner.offload_reference=true")
    ways.append(f"learner.count={2 * learner.count} (it is {learner.count}), each rank holding less of the state")
    return ways
