"""vLLM's AsyncLLM behind the Engine protocol: exact per-token versions, processed logprobs, weights in flight."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray
from vllm import AsyncEngineArgs, SamplingParams
from vllm.config.weight_transfer import WeightTransferConfig
from vllm.distributed.weight_transfer.base import WeightTransferInitRequest
from vllm.exceptions import VLLMClientError
from vllm.logprobs import FlatLogprobs
from vllm.outputs import CompletionOutput
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind
from vllm.v1.attention.backends.registry import AttentionBackendEnum
from vllm.v1.engine.async_llm import AsyncLLM

from asyncrl.config.schema import CPU_KV_CACHE_BYTES, GeneratorConfig
from asyncrl.errors import RunError
from asyncrl.generate.engines.base import EngineSpec, Sampling, completion_text
from asyncrl.publish.vllm.receiver import BACKEND, STAGE_ON_DEVICE
from asyncrl.types import Completion, FinishReason

GPU_DEFAULT_BATCH_TOKENS = 2048
"""The least of vLLM 0.32's defaults for its kinds of GPU (arg_utils.py)."""
CPU_BATCH_TOKENS = 4096
LEAST_MASS = 0.999
"""Of the probability of a token's set: what rounding may leave out, and less than a token that is missing."""
WORKER_EXTENSION = "asyncrl.publish.vllm.receiver.WorkerExtension"


class VllmEngine:
    """One AsyncLLM; create it inside a running event loop."""

    def __init__(self, spec: EngineSpec, config: GeneratorConfig) -> None:
        engine_config = _engine_args(spec, config).create_engine_config()
        if spec.on_cpu:
            from asyncrl.generate.engines.vllm_cpu import start_fast

            start_fast(engine_config)
            if engine_config.model_config.use_mla:
                # Else vLLM 0.32 takes AMX_MLA where there is AMX, and a publish cannot see what that has packed.
                engine_config.attention_config.backend = AttentionBackendEnum.CPU_MLA
        self._llm = AsyncLLM.from_vllm_config(engine_config, disable_log_stats=True)
        self._cores = [psutil.Process(core.pid) for core in self._llm.engine_core.resources.engine_manager.processes]
        self._vocab_size = engine_config.model_config.get_vocab_size()
        self._version = -1  # the weights that vLLM loaded itself; training never sees them
        self._running = asyncio.Event()
        self._running.set()

    @property
    def dead(self) -> bool:
        # vLLM 0.32 fails the requests in flight when its core dies, but never answers a utility call (pause, update).
        # And it hears of that death by a pipe, which on a CPU tensor-parallel workers hold too, for they are the core's
        # forks: one that waits for new weights would keep the death quiet until publish.timeout_s.
        return self._llm.errored or not all(map(_lives, self._cores))

    async def warm_up(self) -> None:
        """Samples once, so that what vLLM compiles at its first step is compiled before the run's first prompt."""
        await self._llm.update_weight_version(str(self._version))
        await self.sample("warm-up", [0], Sampling(1, temperature=1.0, top_p=1.0, top_k=-1, max_tokens=2, seed=0))

    async def sample(self, request_id: str, prompt_token_ids: list[int], sampling: Sampling) -> list[Completion]:
        """`num_samples` completions of one prompt.

        Raises:
            RunError: vLLM refuses the prompt, or ended a completion for another reason than EOS or length; or it did
                not tell all tokens that top-k left.
        """
        await self._running.wait()  # a request that comes during a publish takes the salt of the new version
        prompt = {"prompt_token_ids": prompt_token_ids, "cache_salt": f"v{self._version}"}
        final = None
        try:
            params = _sampling_params(sampling, self._vocab_size)
            async for output in self._llm.generate(prompt, params, request_id):
                final = output
        except VLLMClientError as error:
            raise RunError(f"vLLM refuses a prompt of {len(prompt_token_ids)} tokens: {error}") from error
        assert final is not None
        tokenizer = self._llm.get_tokenizer()
        outputs = sorted(final.outputs, key=lambda output: output.index)
        completions = [_completion(output, tokenizer, sampling.truncates) for output in outputs]
        return completions * (sampling.num_samples // len(completions))  # greedy ones are alike

    async def pause(self, recompute_kv: bool) -> None:
        self._running.clear()
        # As AsyncLLM.pause_generation, without the 20 ms that it sleeps to let last outputs come first: each token
        # carries its version, so their order does not matter. Expiry: when that sleep is gone (vLLM 0.32 has it).
        await self._llm.engine_core.pause_scheduler_async(mode="keep", clear_cache=recompute_kv)

    async def resume(self, version: int) -> None:
        # Carried out in this order; together, because each costs a round trip under the pause.
        await asyncio.gather(self._llm.update_weight_version(str(version)), self._llm.resume_generation())
        self._version = version
        self._running.set()

    async def join_group(self, init_info: dict[str, Any]) -> None:
        await self.leave_group()
        await self._llm.init_weight_transfer_engine(WeightTransferInitRequest(init_info=init_info))

    async def leave_group(self) -> None:
        await self._llm.collective_rpc("leave_publish_group")

    async def stage(self) -> None:
        await self._llm.collective_rpc("stage_weights")

    async def update(self, update_info: dict[str, Any]) -> None:
        await self._llm.collective_rpc("switch_weights", args=(update_info,))

    def shutdown(self) -> None:
        self._llm.shutdown()

    async def kernels(self) -> dict[str, str]:
        (first, *_) = await self._llm.collective_rpc("kernels")
        return dict(first)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _engine_args(spec: EngineSpec, config: GeneratorConfig) -> AsyncEngineArgs:
    kv_cache_bytes = config.kv_cache_bytes or (CPU_KV_CACHE_BYTES if spec.on_cpu else None)
    utilization, stage_on_device = _leaving_room(spec, config)
    return AsyncEngineArgs(
        model=spec.model_path,
        dtype=spec.dtype,
        max_model_len=spec.max_model_len,
        max_num_seqs=spec.max_num_sequences,
        tensor_parallel_size=config.tensor_parallel,
        seed=spec.seed,
        enforce_eager=config.enforce_eager or spec.on_cpu,
        gpu_memory_utilization=utilization,
        kv_cache_memory_bytes=kv_cache_bytes,
        enable_prefix_caching=True,
        # A seeded request whose prefill is cut into chunks kills vLLM 0.32's CPU worker ("CPU Generator does not use
        # offset" in gpu_model_runner._bookkeeping_sync). Expiry: when that line asks for the device first.
        enable_chunked_prefill=False if spec.on_cpu else None,
        max_num_batched_tokens=_batch_tokens(spec),
        logprobs_mode="processed_logprobs",
        max_logprobs=_num_to_tell(config.top_k),
        weight_transfer_config=WeightTransferConfig(backend=BACKEND),
        worker_extension_cls=WORKER_EXTENSION,
        additional_config={STAGE_ON_DEVICE: stage_on_device},
        trust_remote_code=spec.trust_remote_code,
        hf_overrides={"head_dtype": "float32"} if spec.float32_head else {},
        generation_config="vllm",  # sampling comes from our config alone, never from the model's folder
    )


def _leaving_room(spec: EngineSpec, config: GeneratorConfig) -> tuple[float, bool]:
    """The share of GPU memory that vLLM may take, and whether the next version has room beside it."""
    utilization = config.gpu_memory_utilization
    if spec.second_copy is None:
        return utilization, False
    gpu_bytes = current_platform.get_device_total_memory()
    if not spec.second_copy.fits(gpu_bytes, utilization, config.kv_cache_bytes):
        return utilization, False
    return utilization - spec.second_copy.weights_bytes / gpu_bytes, True


def _batch_tokens(spec: EngineSpec) -> int | None:
    """Of one step: at least a token of each sequence, which vLLM demands. None = its own default, which has so many."""
    if spec.on_cpu:
        return max(CPU_BATCH_TOKENS, spec.max_model_len, spec.max_num_sequences)
    return spec.max_num_sequences if spec.max_num_sequences > GPU_DEFAULT_BATCH_TOKENS else None


def _num_to_tell(top_k: int) -> int:
    """Logprobs beside the sampled token's that show which tokens vLLM left to sample from: the finite ones.

    It leaves more than k where others tie with the k-th. Logits have bfloat16's steps, and the more tokens are left the
    denser they lie: where p falls with the inverse of its rank, 3 of 50 share a step of 1/16.
    """
    return top_k + top_k // 2 + 8 if top_k > 0 else 0


def _sampling_params(sampling: Sampling, vocab_size: int) -> SamplingParams:
    return SamplingParams(
        n=sampling.num_samples if sampling.temperature > 0 else 1,  # vLLM refuses more greedy ones
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        max_tokens=sampling.max_tokens,
        seed=sampling.seed,
        logprobs=min(_num_to_tell(sampling.top_k), vocab_size),  # 0 = the sampled token's alone
        # vLLM would turn every token and its logprob entry into text as they come; once at the end takes 40 % off the
        # CPU time of the process that runs this (60 → 36 µs a token with the tiny model).
        detokenize=False,
        flat_logprobs=True,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _completion(output: CompletionOutput, tokenizer: Any, is_truncated: bool) -> Completion:
    token_ids = np.asarray(output.token_ids, np.int32)
    reasons: dict[str | None, FinishReason] = {"stop": "stop", "length": "length"}
    if output.finish_reason not in reasons:
        raise RunError(f"vLLM ended a completion with finish_reason {output.finish_reason!r}")
    assert output.weight_versions is not None
    assert isinstance(output.logprobs, FlatLogprobs)
    versions = np.concatenate([np.full(span.end - span.start, int(span.version)) for span in output.weight_versions])
    assert len(versions) == len(token_ids), f"versions do not cover the tokens: {output.weight_versions}"
    # [L, 1 + told]: the sampled token, then the likeliest ones, itself among them.
    ids = np.asarray(output.logprobs.token_ids, np.int32).reshape(len(token_ids), -1)
    logprobs = np.asarray(output.logprobs.logprobs, np.float32).reshape(ids.shape)
    assert (ids[:, 0] == token_ids).all(), "a logprob of another token than the sampled one"
    return Completion(
        token_ids=token_ids,
        logprobs=logprobs[:, 0],
        versions=versions.astype(np.int32),
        text=completion_text(tokenizer, output.token_ids),
        finish_reason=reasons[output.finish_reason],
        **_supports(ids, logprobs) if is_truncated else {},
    )


def _supports(ids: NDArray[np.int32], logprobs: NDArray[np.float32]) -> dict[str, NDArray[np.int32]]:
    """`Completion.support_ids` and `support_sizes`."""
    is_left = np.isfinite(logprobs)
    is_left[:, 1:] &= ids[:, 1:] != ids[:, :1]
    mass = np.where(is_left, np.exp(logprobs), 0).sum(1)
    if mass.min() < LEAST_MASS:
        raise RunError(
            f"vLLM sampled from more tokens than it told: the {ids.shape[1] - 1} likeliest have a probability of "
            f"{mass.min():.4f} together, because many tie; set another generator.top_k"
        )
    return {"support_ids": ids[is_left], "support_sizes": is_left.sum(1, dtype=np.int32)}
