"""The same requests to vLLM and to SGLang in turn: tokens per second, start-up and memory of each.

    .venv/bin/python bench/pipeline/engines.py [--engines vllm sglang] [--in-flight 1 8 32 128] [--repeats 3]
        [--seconds 5] [--tensor-parallel 1] [--model DIR] [--out FILE.jsonl]

Each engine has a process of its own, which waits while the other is measured. So many requests of one completion each
are kept in flight for so many seconds; a token counts when its completion has ended. Without --model it is a random
Qwen3 of two layers. Prompts have 3 tokens. See bench/README.md.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import multiprocessing.connection
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import psutil

from asyncrl.config.schema import GeneratorConfig
from asyncrl.generate.engines.base import Engine, EngineSpec
from asyncrl.generate.engines.registry import engine_class
from bench.support.processes import cpu_s, tree
from bench.support.rows import Measurement, write_rows
from tests.support.models import random_qwen3
from tests.support.publish import PROMPT, sampling

MAX_TOKENS = 60
LIMIT_S = 580.0


class Served:
    """An engine in a process of its own.

    Args:
        max_in_flight: completions that decode together.
    """

    def __init__(self, name: str, model: Path, tensor_parallel: int, max_in_flight: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._name = name
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(name, model, tensor_parallel, max_in_flight, theirs))
        self._process.start()
        assert self._process.pid is not None
        self._pid = self._process.pid
        self.import_s, self.start_s = self._receive()

    def sample(self, num_in_flight: int, seconds: float) -> tuple[float, float]:
        """Tokens a second, and milliseconds of CPU a token, of all its processes."""
        begun_cpu_s = cpu_s(tree(self._pid))
        self._pipe.send((num_in_flight, seconds))
        num_tokens, took_s = self._receive()
        return num_tokens / took_s, 1e3 * (cpu_s(tree(self._pid)) - begun_cpu_s) / num_tokens

    def close(self) -> float:
        """Returns the memory of its own that it and its children held, in bytes."""
        process = psutil.Process(self._pid)
        num_bytes = sum(one.memory_full_info().uss for one in (process, *process.children(recursive=True)))
        self._pipe.send(None)
        self._process.join(LIMIT_S)
        return float(num_bytes)

    def _receive(self) -> tuple[float, ...]:
        ready = multiprocessing.connection.wait([self._pipe, self._process.sentinel], LIMIT_S)
        if self._pipe not in ready:
            raise SystemExit(f"{self._name} {'ended' if ready else f'said nothing for {LIMIT_S:.0f} s'}")
        answer: tuple[float, ...] = self._pipe.recv()
        return answer


def _serve(
    name: str, model: Path, tensor_parallel: int, max_in_flight: int, pipe: multiprocessing.connection.Connection
) -> None:
    begun_s = time.perf_counter()
    make = engine_class(name)
    import_s = time.perf_counter() - begun_s

    async def serve() -> None:
        spec = EngineSpec(str(model), "float32", 64, max_in_flight, 0, True, False)
        engine = make(spec, GeneratorConfig(tensor_parallel=tensor_parallel))
        await engine.warm_up()
        pipe.send((import_s, time.perf_counter() - begun_s - import_s))
        while (asked := await asyncio.to_thread(pipe.recv)) is not None:
            pipe.send(await _sample(engine, *asked))
        engine.shutdown()

    asyncio.run(serve())


async def _sample(engine: Engine, num_in_flight: int, seconds: float) -> tuple[int, float]:
    """Tokens of completions that ended, and the seconds that it took."""
    begun_s = time.perf_counter()

    async def requests(k: int) -> int:
        num_tokens = number = 0
        while time.perf_counter() < begun_s + seconds:
            request_id = f"{begun_s}-{k}-{number}"
            (completion,) = await engine.sample(request_id, PROMPT, sampling(1, MAX_TOKENS, seed=1000 * k + number))
            num_tokens += len(completion.token_ids)
            number += 1
        return num_tokens

    num_tokens = await asyncio.gather(*(requests(k) for k in range(num_in_flight)))
    return sum(num_tokens), time.perf_counter() - begun_s


def measure(arguments: argparse.Namespace, folder: Path) -> list[Measurement]:
    model = arguments.model or random_qwen3(folder / "model", tied=True)
    parts, most = arguments.tensor_parallel, max(arguments.in_flight)
    engines = {name: Served(name, model, parts, most) for name in arguments.engines}
    rows = []
    for num_in_flight in arguments.in_flight:
        samples: dict[str, list[tuple[float, float]]] = {name: [] for name in engines}
        for _ in range(arguments.repeats):
            for name, engine in engines.items():
                samples[name].append(engine.sample(num_in_flight, arguments.seconds))
        for name, repeats in samples.items():
            rates, costs = [rate for rate, _ in repeats], [cost for _, cost in repeats]
            rows.append(Measurement(f"{name}_{num_in_flight}_tokens_per_s", rates, "more"))
            rows.append(Measurement(f"{name}_{num_in_flight}_cpu_ms_per_token", costs, "less"))
            print(
                f"{name}, {num_in_flight} in flight: {statistics.median(rates):,.0f} tok/s "
                f"({', '.join(f'{rate:,.0f}' for rate in rates)}), {statistics.median(costs):.3f} ms CPU a token",
                flush=True,
            )
    for name, engine in engines.items():
        num_bytes = engine.close()
        rows.append(Measurement(f"{name}_import_s", [engine.import_s], "less"))
        rows.append(Measurement(f"{name}_start_s", [engine.start_s], "less"))
        rows.append(Measurement(f"{name}_memory_bytes", [num_bytes], "less"))
        print(f"{name}: import {engine.import_s:.1f} s, start {engine.start_s:.1f} s, {num_bytes / 2**30:.2f} GiB")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", default=["vllm", "sglang"])
    parser.add_argument("--in-flight", nargs="+", type=int, default=[1, 8, 32, 128])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--tensor-parallel", type=int, default=1)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(arguments, Path(folder))
    if arguments.out is not None:
        write_rows(arguments.out, "engines", rows)


if __name__ == "__main__":
    main()
