"""SGLang behind the Engine protocol: exact per-token versions, seeds that are kept, weights in flight.

What it refuses, and what was measured: docs/sglang.md.
"""

from __future__ import annotations

import random
from itertools import chain
from typing import Any

import msgspec
import numpy as np
from transformers import AutoTokenizer

from asyncrl import devices
from asyncrl.config.model_shape import ModelShape, read_model_shape
from asyncrl.config.schema import CPU_KV_CACHE_BYTES, GeneratorConfig
from asyncrl.errors import ConfigError, RunError
from asyncrl.generate.engines.base import EngineSpec, Sampling, completion_text
from asyncrl.generate.engines.sglang.imports import GenerateReqInput
from asyncrl.generate.engines.sglang.process import SglangProcesses
from asyncrl.types import Completion, FinishReason

CONTEXT_MARGIN = 8
"""SGLang 0.5.23 samples at most this many tokens less than the context it is given."""
MAX_SEED = (1 << 63) - 1


class SglangEngine:
    """Create it inside a running event loop."""

    def __init__(self, spec: EngineSpec, config: GeneratorConfig) -> None:
        self._tokenizer: Any = AutoTokenizer.from_pretrained(spec.model_path, trust_remote_code=spec.trust_remote_code)
        shape = read_model_shape(spec.model_path, spec.trust_remote_code)
        self._vocab_size = shape.vocab_size
        self._max_model_len = spec.max_model_len
        self._arguments = _arguments(spec, config, shape)
        self._processes = SglangProcesses(self._arguments)

    @property
    def dead(self) -> bool:
        return self._processes.dead

    async def warm_up(self) -> None:
        """Samples once, so that what is made at the first step is made before the run's first prompt."""
        await self.sample("warm-up", [0], Sampling(1, temperature=1.0, top_p=1.0, top_k=-1, max_tokens=2, seed=0))

    async def sample(self, request_id: str, prompt_token_ids: list[int], sampling: Sampling) -> list[Completion]:
        """`num_samples` completions of one prompt, the i-th with seed + i.

        Raises:
            RunError: the prompt cannot be answered; sampling is truncated, whose logprobs SGLang does not renormalise;
                or SGLang ended a completion for another reason than EOS or length.
        """
        self._require_that_it_can_be_answered(prompt_token_ids)
        if (sampling.top_p, sampling.top_k) != (1.0, -1):
            raise RunError("generator.engine=sglang samples from the whole vocabulary: top_p=1, top_k=-1")
        first_seed = random.randrange(MAX_SEED) if sampling.seed is None else sampling.seed
        positions = range(sampling.num_samples)
        request = GenerateReqInput(
            input_ids=[prompt_token_ids for _ in positions],
            rid=[f"{request_id}-{position}" for position in positions],
            sampling_params=[
                self._parameters(sampling, first_seed + position, len(prompt_token_ids)) for position in positions
            ],
            return_logprob=True,
            return_text_in_logprobs=False,
        )
        return [self._completion(answer) for answer in await self._processes.generate(request)]

    async def join_group(self, init_info: dict[str, Any]) -> None:
        await self._processes.call("publish_join", info=msgspec.json.encode(init_info).decode())

    async def leave_group(self) -> None:
        await self._processes.call("publish_leave")

    async def stage(self) -> None:
        await self._processes.call("publish_stage")

    async def pause(self, recompute_kv: bool) -> None:
        await self._processes.call("publish_pause", recompute_kv=recompute_kv)

    async def update(self, update_info: dict[str, Any]) -> None:
        await self._processes.call("publish_take_over", staged=update_info["staged"])

    async def resume(self, version: int) -> None:
        await self._processes.call("publish_resume", version=version)

    def shutdown(self) -> None:
        self._processes.shutdown()

    async def kernels(self) -> dict[str, str]:
        attention = self._arguments["attention_backend"] or "SGLang's default"
        return {"attention": attention, "sampling": "asyncrl.generate.engines.sglang.seeded_sampling.draw"}

    def _require_that_it_can_be_answered(self, prompt: list[int]) -> None:
        if not prompt:
            raise RunError("an empty prompt")
        if len(prompt) >= self._max_model_len:
            raise RunError(f"a prompt of {len(prompt)} tokens, where {self._max_model_len} are all with the completion")
        if not 0 <= min(prompt) <= max(prompt) < self._vocab_size:
            raise RunError(f"a prompt with token {max(prompt)}, of a vocabulary of {self._vocab_size}")

    def _parameters(self, sampling: Sampling, seed: int, num_prompt_tokens: int) -> dict[str, Any]:
        return {
            "max_new_tokens": min(sampling.max_tokens, self._max_model_len - num_prompt_tokens),
            "temperature": sampling.temperature,
            "stop_token_ids": [self._tokenizer.eos_token_id],
            "sampling_seed": seed & MAX_SEED,
        }

    def _completion(self, answer: dict[str, Any]) -> Completion:
        meta, token_ids = answer["meta_info"], np.asarray(answer["output_ids"], np.int32)
        reasons: dict[str, FinishReason] = {"stop": "stop", "length": "length"}
        if (reason := meta["finish_reason"])["type"] not in reasons:
            raise RunError(f"SGLang ended a completion with {reason}")
        logprobs = meta["output_token_logprobs"]
        assert [token for _, token, _ in logprobs] == token_ids.tolist(), "a logprob of another token than the sampled"
        spans = [[int(span["version"])] * (span["end"] - span["start"]) for span in meta["weight_versions"]]
        versions = np.asarray(list(chain.from_iterable(spans)), np.int32)
        assert len(versions) == len(token_ids), f"versions do not cover the tokens: {meta['weight_versions']}"
        return Completion(
            token_ids=token_ids,
            logprobs=np.asarray([logprob for logprob, _, _ in logprobs], np.float32),
            versions=versions,
            text=completion_text(self._tokenizer, answer["output_ids"]),
            finish_reason=reasons[reason["type"]],
        )


def _arguments(spec: EngineSpec, config: GeneratorConfig, shape: ModelShape) -> dict[str, Any]:
    """Of SGLang's ServerArgs."""
    return {
        "model_path": spec.model_path,
        "dtype": spec.dtype,
        "enable_fp32_lm_head": spec.float32_head,
        "context_length": spec.max_model_len + CONTEXT_MARGIN,
        "max_running_requests": spec.max_num_sequences,
        "max_total_tokens": _kv_cache_tokens(spec, config, shape),
        "mem_fraction_static": None if spec.on_cpu else config.gpu_memory_utilization,
        "tp_size": config.tensor_parallel,
        "random_seed": spec.seed,
        "trust_remote_code": spec.trust_remote_code,
        "device": "cpu" if spec.on_cpu else None,
        "attention_backend": "torch_native" if spec.on_cpu else None,
        "sampling_backend": "pytorch",  # see seeded_sampling.py
        "grammar_backend": "none",
        f"disable_{devices.TORCH_TYPE}_graph": config.enforce_eager or spec.on_cpu,
        "disable_overlap_schedule": True,  # else version labels are not exact, see scheduler.py
        "schedule_policy": "lpm",  # one of a group computes their prompt, the others find it in the prefix cache
        "skip_tokenizer_init": True,
        "sleep_on_idle": True,
        "weight_version": "-1",  # the weights that SGLang loaded itself; training never sees them
        "log_level": "error",
    }


def _kv_cache_tokens(spec: EngineSpec, config: GeneratorConfig, shape: ModelShape) -> int | None:
    """None = what SGLang finds room for on a GPU.

    Raises:
        ConfigError: not even one completion would fit.
    """
    kv_cache_bytes = config.kv_cache_bytes or (CPU_KV_CACHE_BYTES if spec.on_cpu else None)
    if kv_cache_bytes is None:
        return None
    bytes_of_value = 4 if spec.dtype == "float32" else 2
    num_tokens = kv_cache_bytes // shape.kv_bytes_per_token(config.tensor_parallel, bytes_of_value)
    if num_tokens < spec.max_model_len + CONTEXT_MARGIN:
        raise ConfigError(
            f"generator.kv_cache_bytes={kv_cache_bytes} holds {num_tokens} tokens, and one completion with its prompt "
            f"takes {spec.max_model_len + CONTEXT_MARGIN}; make it larger"
        )
    return num_tokens
