"""A selftest's system inside one process, without Ray: for tests and for seeded bugs."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from asyncrl.cluster.roles import engine_spec
from asyncrl.config.load import load
from asyncrl.config.schema import Config
from asyncrl.publish.groups.rendezvous import new_store_file
from asyncrl.selftest.generator import Generator
from asyncrl.selftest.learner import LearnerRank
from asyncrl.selftest.model import eos_token_ids, noise_scale, read_tokenizer, text_of
from asyncrl.selftest.system import System
from asyncrl.transport.sockets import Network

STAND_IN = "bench.standin.engine:StandInEngine"
NUM_THREADS = 64
_LOADING = threading.Lock()
"""transformers loads one model at a time in a process; the other one would lack weights."""


class LocalPart:
    """See `selftest.system.Part`."""

    def __init__(self, name: str, part: Any, num_threads: int) -> None:
        self.name = name
        self._part = part
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix=name)

    def call(self, method: str, *args: Any) -> Future[Any]:
        if method != "start":
            return self._threads.submit(getattr(self._part, method), *args)
        return self._threads.submit(self._start, *args)

    def _start(self, *args: Any) -> Any:
        with _LOADING:
            return self._part.start(*args)

    def close(self) -> None:
        self.call("stop").result(60)
        self._threads.shutdown()


def config_of(model: Path | str, engine: str, *overrides: str) -> Config:
    """Short prompts and completions, for a model with 64 positions."""
    return load(
        None,
        [
            f"model.path={model}",
            "model.dtype=float32",
            "data.train=none",
            "data.max_prompt_tokens=40",
            "generator.max_tokens=20",
            f"generator.engine={engine}",
            "generator.max_groups_in_flight=4",
            "generator.kv_cache_bytes=33554432",
            "publish.engine=sliced",
            "publish.transport=gloo",
            "publish.timeout_s=30",
            "publish.bucket_bytes=4000",
            "cluster.device=cpu",
            "learner.micro_batch_tokens=512",
            *overrides,
        ],
    )


@contextmanager
def local_system(config: Config) -> Iterator[System]:
    """One learner and one generator, which have started; the engine's children, if any, are forks of this process."""
    learner = LocalPart("learner-0", LearnerRank("learner-0", config, True, Network()), 1)
    generator = LocalPart("generator-0", Generator("generator-0", config, True, Network()), NUM_THREADS)
    tokenizer = read_tokenizer(config)
    with tempfile.TemporaryDirectory() as folder:
        system = System(
            config=config,
            learners=[learner],
            generators=[generator],
            noise_scale=noise_scale(is_tiny=True, dtype=config.model.dtype),
            num_layers=AutoConfig.from_pretrained(config.model.path).num_hidden_layers,
            vocab_size=len(tokenizer),
            eos_token_ids=eos_token_ids(config, tokenizer),
            max_num_sequences=engine_spec(config, True).max_num_sequences,
            decode=text_of(tokenizer),
            new_rendezvous=lambda: new_store_file(Path(folder)),
        )
        try:
            system.start()
            yield system
        finally:
            learner.close()
            generator.close()
