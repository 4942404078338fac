"""An engine that starts in seconds, in place of vLLM: `generator.engine=bench.standin.engine:StandInEngine`.

For runs in which engines start often (`bench/chaos/chaos.py --stand-in`). It is slow with any but a tiny model, but
nothing in it is feigned: tokens are sampled from a transformers model that holds the weights it was last sent, their
logprobs and versions are those of the forward that sampled them, and versions come over the project's own publish
groups, staged, with checksums, and verified.

    event loop       sample → a request ──▶ queue          pause → no step begins, the present one has ended
    sampler thread   all requests that wait ─▶ step, step, … ─▶ each request's future; those that are cancelled drop out
    publish thread   `publish/receiver.py`: buckets → the next parameters, beside those that serve
"""

from __future__ import annotations

import asyncio
import queue
import threading
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from asyncrl.config.schema import GeneratorConfig
from asyncrl.errors import PublishError, RunError
from asyncrl.generate.engines.base import EngineSpec, Sampling
from asyncrl.publish.next_parameters import NextParameters
from asyncrl.publish.plan import Slice, dtype_named
from asyncrl.publish.receiver import JoinInfo, Receiver, whole_slices
from asyncrl.types import Completion
from bench.support.sampler import Request, SamplingBatch


@dataclass(frozen=True)
class _Pending:
    """A request, and where its completions go."""

    request: Request
    loop: asyncio.AbstractEventLoop
    completions: asyncio.Future[list[Completion]]


class StandInEngine:
    """One transformers model on the CPU; follows asyncrl.generate.engines.base.Engine."""

    def __init__(self, spec: EngineSpec, config: GeneratorConfig) -> None:
        assert spec.on_cpu, "the stand-in has one worker, on the CPU"
        assert config.tensor_parallel == 1, "the stand-in has one worker"
        self._tokenizer = AutoTokenizer.from_pretrained(spec.model_path)
        self._model = AutoModelForCausalLM.from_pretrained(spec.model_path, dtype=dtype_named(spec.dtype)).eval()
        self._receiver = ModelReceiver(self._model)
        self._max_model_len = spec.max_model_len
        self._max_num_sequences = spec.max_num_sequences
        self._version = -1
        self._pending: queue.SimpleQueue[_Pending] = queue.SimpleQueue()
        self._batch: SamplingBatch | None = None
        self._may_step = threading.Event()
        self._may_step.set()
        self._stepping = threading.Lock()
        """Held for each step of the sampler, and while weights or version change."""
        self._thread = threading.Thread(target=self._serve, name="sampler", daemon=True)
        self._thread.start()

    @property
    def dead(self) -> bool:
        return not self._thread.is_alive()

    async def warm_up(self) -> None:
        await self.sample("warm-up", [0], Sampling(1, temperature=1.0, top_p=1.0, top_k=-1, max_tokens=2, seed=0))

    async def sample(self, request_id: str, prompt_token_ids: list[int], sampling: Sampling) -> list[Completion]:
        """`num_samples` completions of one prompt. Truncated sampling is not there.

        Raises:
            RunError: the prompt is empty, too long or has an unknown token.
        """
        assert (sampling.top_p, sampling.top_k) == (1.0, -1), "the stand-in samples from the whole vocabulary"
        self._require_answerable(prompt_token_ids)
        loop = asyncio.get_running_loop()
        pending = _Pending(Request(prompt_token_ids, sampling), loop, loop.create_future())
        self._pending.put(pending)
        return await pending.completions

    def _require_answerable(self, prompt_token_ids: list[int]) -> None:
        vocab_size = self._model.config.vocab_size
        if not 1 <= len(prompt_token_ids) <= self._max_model_len:
            raise RunError(f"a prompt of {len(prompt_token_ids)} tokens; 1 to {self._max_model_len} can be answered")
        if not all(0 <= token < vocab_size for token in prompt_token_ids):
            raise RunError(f"a prompt with a token outside of the vocabulary of {vocab_size}")

    async def join_group(self, init_info: dict[str, Any]) -> None:
        await self.leave_group()
        info = JoinInfo(**init_info)
        self._receiver.require_own(info.weights())
        self._receiver.begin(info, whole_slices(info.weights()), part=0, num_parts=1)

    async def leave_group(self) -> None:
        self._receiver.leave()

    async def stage(self) -> None:
        self._receiver.stage()

    async def pause(self, recompute_kv: bool) -> None:
        self._may_step.clear()
        await asyncio.to_thread(self._after_the_step, recompute_kv)

    def _after_the_step(self, recompute_kv: bool) -> None:
        with self._stepping:
            if recompute_kv and self._batch is not None:
                self._batch.forget_kv()

    async def update(self, update_info: dict[str, Any]) -> None:
        await asyncio.to_thread(self._receiver.take_over, update_info["staged"])

    async def resume(self, version: int) -> None:
        self._version = version
        self._may_step.set()

    def shutdown(self) -> None:
        self._receiver.leave()

    async def kernels(self) -> dict[str, str]:
        return {"attention": str(self._model.config._attn_implementation), "sampling": "torch.multinomial"}

    def _serve(self) -> None:
        """The sampler thread, for as long as the process lives."""
        while True:
            waiting = self._waiting()
            self._batch = batch = SamplingBatch(self._model, [pending.request for pending in waiting])
            while not batch.done:
                self._may_step.wait()
                with self._stepping:
                    if self._may_step.is_set():
                        for position, pending in enumerate(waiting):
                            if pending.completions.cancelled():
                                batch.give_up(position)
                        batch.step(self._version)
            for pending, completions in zip(waiting, batch.completions(self._tokenizer), strict=True):
                pending.loop.call_soon_threadsafe(_set, pending.completions, completions)

    def _waiting(self) -> list[_Pending]:
        """The requests that have come, one at least, as many as may decode together."""
        waiting: list[_Pending] = []
        num_sequences = 0
        while not waiting or (num_sequences < self._max_num_sequences and not self._pending.empty()):
            pending = self._pending.get()
            if not pending.completions.cancelled():
                waiting.append(pending)
                num_sequences += pending.request.sampling.num_samples
        return waiting


def _set(future: asyncio.Future[list[Completion]], completions: list[Completion]) -> None:
    if not future.done():  # else whoever asked has given up
        future.set_result(completions)


class ModelReceiver(Receiver):
    """Keeps every parameter of a transformers model whole."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._parameters = dict(model.named_parameters())

    def require_own(self, weights: dict[str, torch.Tensor]) -> None:
        if weights.keys() != self._parameters.keys():
            raise PublishError(f"not the model's parameters: {sorted(weights.keys() ^ self._parameters.keys())}")

    def _new_assembly(self, slices: list[Slice], at_once: bool) -> NextParameters:
        """What comes at once is put beside what serves too."""
        return NextParameters(self._parameters, slices, self._pieces, self._device, at_once=False, spare=None)
