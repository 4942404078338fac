"""Environment variables of each role's process. They must be set before its Python starts, so Ray sets them."""

from __future__ import annotations

from asyncrl import devices
from asyncrl.config.schema import Config


def environment(role: str, device: str, config: Config) -> dict[str, str]:
    """For the process of one role; vLLM's children inherit it.

    Args:
        role: `replay`, `generator` or `learner`.
        device: `cpu` or `gpu`.
    """
    variables = {
        "PYTHONDONTWRITEBYTECODE": "",  # unset: without bytecode vLLM takes three times as long to start
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    if device == "cpu":
        variables[devices.VISIBLE_DEVICES] = ""
        num_threads = config.learner.num_threads if role == "learner" else 1
        variables["OMP_NUM_THREADS"] = str(num_threads)
        # Two engines on two cores give 4,480 tok/s together; with vLLM's default, which pins both to one core, 903.
        variables["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        # torch asks for huge pages where an allocation is larger than one: 128 MB are there in 18 ms instead of 67.
        variables["THP_MEM_ALLOC_ENABLE"] = "1"
        if role == "learner":
            # glibc gives freed activations back to the kernel and faults them in again: 10,000 to 30,000 page faults
            # and 5 to 10 % of a tiny model's step. Keep them. (32 MiB is the largest threshold that glibc takes.)
            variables["MALLOC_TRIM_THRESHOLD_"] = str(1 << 40)
            variables["MALLOC_MMAP_THRESHOLD_"] = str(32 << 20)
    return variables
