"""SGLang's scheduler process, one a tensor-parallel rank, with asyncrl's end of a publish in it.

Consumes   requests and calls from the generator's process (`process.py`); weights from learner rank 0.
Produces   tokens with their logprobs and versions; an answer to each call.
Waits for  requests. A call never waits for the learner but `take_over`, at most publish.timeout_s.

Calls are carried out between two steps: overlap scheduling is off, so nothing is in flight then. That is what makes
version labels exact; with overlap SGLang 0.5.23 labels one token of the old weights as of the new.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import torch
import torch.distributed as dist

from asyncrl.errors import PublishError
from asyncrl.generate.engines.sglang import imports, seeded_sampling
from asyncrl.generate.engines.sglang.imports import ContinueGenerationReqInput, PauseGenerationReqInput, get_parallel
from asyncrl.publish.receiver import JoinInfo
from asyncrl.publish.sglang.receiver import SglangReceiver

log = logging.getLogger(__name__)

REASON_BYTES = 1024
"""Of what a rank says to the others when it fails."""


class PublishingScheduler(imports.scheduler.Scheduler):
    """SGLang's scheduler; `publish_*` are called by name, on every rank at once."""

    _receiver: SglangReceiver | None = None
    _salt = ""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_config.hf_eos_token_id = set()  # a completion ends as in vLLM: by the tokenizer's EOS alone

    def publish_join(self, info: str) -> None:
        """`info` is a JoinInfo as JSON."""
        self._on_all_ranks(lambda: self._join(msgspec.json.decode(info, type=JoinInfo)))

    def publish_leave(self) -> None:
        if self._receiver is not None:
            self._receiver.leave()

    def publish_stage(self) -> None:
        assert self._receiver is not None, "staging before a group was joined"
        self._receiver.stage()

    def publish_pause(self, recompute_kv: bool) -> None:
        mode = "retract" if recompute_kv else "in_place"
        self.pause_generation(PauseGenerationReqInput(mode=mode))
        if recompute_kv:
            self.flush_cache(empty_cache=False)

    def publish_take_over(self, staged: bool) -> None:
        assert self._receiver is not None, "new weights before a group was joined"
        receiver = self._receiver
        self._on_all_ranks(lambda: receiver.take_over(staged))

    def publish_resume(self, version: int) -> None:
        """Version label, prefix cache and decoding change together.

        What waits has no KV yet, so it begins with the new version; what decodes goes on with the KV that it has.
        """
        self.record_weight_version_change(str(version))
        self._salt = f"v{version}"
        for request in self.waiting_queue:
            request.extra_key = self._salt
        self.continue_generation(ContinueGenerationReqInput(torch_empty_cache=False))

    def _add_request_to_queue(self, req: Any, is_retracted: bool = False) -> None:
        """Of every request, also of one that has lost its KV: it reads and fills the prefix cache of its version."""
        req.extra_key = self._salt
        super()._add_request_to_queue(req, is_retracted)

    def _record_scheduler_state_for_paused_engine(self) -> None:
        """Called in a loop without a rest while paused; the thread that receives weights needs the interpreter."""
        super()._record_scheduler_state_for_paused_engine()
        if self.idle_sleeper is not None:
            self.idle_sleeper.poller.poll(10)

    def _join(self, info: JoinInfo) -> None:
        if self._receiver is None:
            runner = self.tp_worker.model_runner
            self._receiver = SglangReceiver(runner.model, runner.model_config.hf_text_config.model_type)
        self._receiver.join(info, get_parallel().tp_rank, get_parallel().tp_size)

    def _on_all_ranks(self, action: Callable[[], None]) -> None:
        """Fails on each rank when it fails on one: SGLang answers a call with what became of it on the first alone."""
        reason = ""
        try:
            action()
        except Exception as error:
            reason = f"rank {get_parallel().tp_rank}: {type(error).__name__}: {error}"
            log.exception("a publish failed")
        reasons = self._exchanged(reason)
        if any(reasons):
            raise PublishError("; ".join(filter(None, reasons)))

    def _exchanged(self, text: str) -> list[str]:
        """Every rank's text, cut to REASON_BYTES."""
        if get_parallel().tp_size == 1:
            return [text]
        mine = torch.zeros(REASON_BYTES, dtype=torch.uint8)
        encoded = text.encode()[:REASON_BYTES]
        mine[: len(encoded)] = torch.tensor(list(encoded), dtype=torch.uint8)
        everyones = [torch.empty_like(mine) for _ in range(get_parallel().tp_size)]
        dist.all_gather(everyones, mine, group=self.tp_group.cpu_group)
        return [bytes(one.tolist()).rstrip(b"\0").decode(errors="replace") for one in everyones]


def run_scheduler_process(reasons: Any, *args: Any, **kwargs: Any) -> None:
    """SGLang's own, with the classes above in the places of its own.

    Args:
        reasons: a queue of one text, for the first error that ends this process.
    """

    class Telling(PublishingScheduler):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            with _telling(reasons):
                super().__init__(*args, **kwargs)

        def run_event_loop(self) -> None:
            with _telling(reasons):
                super().run_event_loop()

    seeded_sampling.install()
    imports.scheduler.Scheduler = Telling
    imports.scheduler.run_scheduler_process(*args, **kwargs)


@contextmanager
def _telling(reasons: Any) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        reasons.put(f"{type(error).__name__}: {error}"[:REASON_BYTES])
        raise
