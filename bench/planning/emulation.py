"""The simulator against the real replay: server, ledger on disk, sockets, leases and batches are real, compute waits.

    .venv/bin/python -m bench.planning.emulation [--steps 40] [--only NAME ...] [--out FILE.jsonl]

Generators decode by `bench/standin/timed_decoder.py`, learner ranks are processes that sleep (`ranks.py`), a publish
sleeps in a thread of its own. Each setting runs once for real, and is simulated with the same times and other lengths.
Nothing is fitted.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import numpy as np
import zmq
import zmq.asyncio

from asyncrl.config.load import load
from asyncrl.ledger.from_config import ledger_of
from asyncrl.ledger.store import LedgerStore
from asyncrl.replay.evaluation import Evaluation
from asyncrl.replay.learner_client import LearnerClient
from asyncrl.replay.server import ReplayServer
from asyncrl.simulate.figures import STEPS_A_VERSION, figures
from asyncrl.simulate.setting import Setting
from asyncrl.simulate.simulation import simulate
from asyncrl.simulate.timings import Timings, Workload
from asyncrl.transport.control_link import ControlLink
from asyncrl.transport.control_server import ControlServer
from asyncrl.transport.messages.rollouts import GroupDone, Hello, LeaseGrant, Serving
from asyncrl.transport.sockets import Network, bind, connect
from asyncrl.transport.wire import decode, encode, group_to_wire
from asyncrl.types import Group, Prompt
from bench.planning.ranks import Ranks
from bench.standin.timed_decoder import TimedDecoder
from bench.support.rows import Measurement, write_rows

DEADLINE_S = 60.0
HEADER = (
    "| setting | samples/s | simulated | | mean staleness | simulated | learner idle | simulated | load |\n"
    "|---|---|---|---|---|---|---|---|---|"
)
PROMPT_TOKENS = 10

TIMINGS = Timings(
    decode_base_s=0.005,
    decode_per_sequence_s=0.0001,
    prefill_per_token_s=0.0,
    max_sequences=1 << 30,
    train_base_s=0.1,
    train_per_token_s=0.00015,
    gather_s=0.02,
    transfer_s=0.1,
    stall_s=0.03,
)
WORKLOAD = Workload(prompt_tokens=PROMPT_TOKENS, length_median=50.0, length_sigma=0.8, max_tokens=250)
SIZES = ["learner.batch_size=8", "algorithm.group_size=4", "generator.max_groups_in_flight=8"]
LONG_TAIL = replace(WORKLOAD, length_median=30.0, length_sigma=1.2, max_tokens=400)


@dataclass(frozen=True)
class Figure:
    """What both are held against each other by."""

    samples_per_s: float
    staleness_mean: float
    learner_idle: float


def settings(num_steps: int) -> dict[str, Setting]:
    """Around one in which both sides take about as long."""

    def of(*overrides: str, timings: Timings = TIMINGS, workload: Workload = WORKLOAD) -> Setting:
        config = load(None, ["model.path=tiny", "data.train=arithmetic", *SIZES, *overrides])
        return Setting(config, timings, workload, num_steps)

    slow_learner = replace(TIMINGS, train_base_s=0.6)
    four = ("generator.count=4", "replay.max_staleness=1")
    return {
        "η = 2": of(),
        "η = 1": of("replay.max_staleness=1"),
        "η = 0": of("replay.max_staleness=0"),
        "2 generators": of("generator.count=2"),
        "4 generators, η = 1": of(*four),
        "2 groups in flight": of("generator.max_groups_in_flight=2"),
        "slow learner": of(timings=slow_learner),
        "published every 2": of("publish.every=2", "generator.count=2"),
        "long tail": of(workload=LONG_TAIL),
        "long tail, mask": of(*four, "replay.stragglers=mask", workload=LONG_TAIL),
        "long tail, requeue": of(*four, "replay.stragglers=requeue", workload=LONG_TAIL),
        "64 generators, B = 64": of("generator.count=64", "learner.batch_size=64", "generator.max_groups_in_flight=2"),
    }


class Generators:
    """All of them on one event loop, in a thread."""

    def __init__(self, setting: Setting, network: Network, endpoint: str) -> None:
        self._setting = setting
        self._network = network
        self._endpoint = endpoint
        self._lengths = setting.workload.lengths(np.random.default_rng(setting.seed + 1))
        self._decoders: list[TimedDecoder] = []
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(DEADLINE_S)

    async def _start(self) -> None:
        self._context = zmq.asyncio.Context()
        timings = self._setting.timings
        for rank in range(self._setting.config.generator.count):
            decoder = TimedDecoder(lambda n: timings.decode_base_s + timings.decode_per_sequence_s * n)
            decoder.resume(0)
            self._decoders.append(decoder)
            self._spawn(self._serve(f"generator-{rank}", decoder))

    def _spawn(self, coroutine: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """An error is shown at once by the loop; whoever waits for the group then meets its deadline."""
        self._tasks.discard(task)
        if not task.cancelled():
            task.result()

    async def _serve(self, name: str, decoder: TimedDecoder) -> None:
        socket = connect(self._context, self._network, self._endpoint, name)
        credit = self._setting.config.generator.max_groups_in_flight
        await socket.send_multipart(encode(Hello(f"tcp://{name}", 1, credit)))
        await socket.send_multipart(encode(Serving()))
        while True:
            message, _ = decode(await socket.recv_multipart())
            if isinstance(message, LeaseGrant):
                self._spawn(self._answer(socket, message, decoder))

    async def _answer(self, socket: zmq.asyncio.Socket, grant: LeaseGrant, decoder: TimedDecoder) -> None:
        lengths = np.asarray([next(self._lengths) for _ in range(grant.num_samples)], np.int32)
        versions = await decoder.decode(lengths)
        num_tokens, size = int(lengths.sum()), grant.num_samples
        group = Group(
            index=grant.index,
            row=grant.row,
            prompt_token_ids=np.asarray(grant.token_ids, np.int32),
            lengths=lengths,
            tokens=np.zeros(num_tokens, np.int32),
            logprobs=np.zeros(num_tokens, np.float32),
            versions=np.concatenate([versions[:length] for length in lengths]),
            rewards=np.zeros(size, np.float32),
            correct=np.zeros(size, np.bool_),
            truncated=np.zeros(size, np.bool_),
        )
        header, frames = group_to_wire(group)
        await socket.send_multipart(encode(GroupDone(grant.lease_id, header), frames))

    def switch(self, version: int) -> None:
        """All at once, each standing still for the stall."""
        asyncio.run_coroutine_threadsafe(self._switch_all(version), self._loop).result(DEADLINE_S)

    async def _switch_all(self, version: int) -> None:
        async def switch(decoder: TimedDecoder) -> None:
            await decoder.pause()
            await asyncio.sleep(self._setting.timings.stall_s)
            decoder.resume(version)

        await asyncio.gather(*map(switch, self._decoders))

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(DEADLINE_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DEADLINE_S)

    async def _stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._context.destroy(linger=0)


def emulate(setting: Setting) -> Figure:
    """One run on the wall clock."""
    with tempfile.TemporaryDirectory() as folder:
        network, config = Network(), setting.config
        store = LedgerStore(Path(folder) / "ledger.sqlite", config.replay.durability)
        control = ControlServer(network, ["replay"])
        link = ControlLink("replay", network, control.endpoint, 600.0, 600.0)
        context: zmq.Context = zmq.Context.instance()
        socket, endpoint = bind(context, network)
        prompt = Prompt(0, [1] * PROMPT_TOKENS, "", "")
        ledger = ledger_of(config, setting.num_steps)
        server = ReplayServer(socket, config, lambda index: prompt, Evaluation([], config), ledger, store, link)
        thread = threading.Thread(target=server.run)
        thread.start()
        generators = Generators(setting, network, endpoint)
        clients = [LearnerClient(name, network, endpoint, threading.Event()) for name in ("learner-0", "publisher")]
        ranks = Ranks(config.learner.count, setting.timings)
        try:
            return _learn(setting, ranks, generators, *clients)
        finally:
            ranks.close()
            generators.close()
            link.stopping.set()
            thread.join(DEADLINE_S)
            for client in clients:
                client.close()
            link.close()
            control.close()
            store.close()
            socket.close(0)


def _learn(
    setting: Setting, ranks: Ranks, generators: Generators, replay: LearnerClient, publisher: LearnerClient
) -> Figure:
    """The loop of `learn/worker.py` on rank 0, asleep where it would compute."""
    timings, config = setting.timings, setting.config

    def publish(version: int) -> None:
        time.sleep(timings.transfer_s)
        generators.switch(version)
        publisher.published(version, DEADLINE_S)

    replay.wait_for_generators(config.generator.count, DEADLINE_S)
    publisher.published(0, DEADLINE_S)
    ends_s, waits_s, lags = [time.monotonic()], [0.0], [0.0]
    with ThreadPoolExecutor(1) as thread:
        published: Future[None] = thread.submit(lambda: None)
        for step in range(setting.num_steps):
            reply, frames = replay.batch(step, DEADLINE_S, None)
            fetched_s = time.monotonic()
            batch = ranks.train(reply, frames)
            wait_s = fetched_s - ends_s[-1]
            if (step + 1) % config.publish.every == 0 or step + 1 == setting.num_steps:
                trained_s = time.monotonic()
                published.result(DEADLINE_S)
                wait_s += time.monotonic() - trained_s
                time.sleep(timings.gather_s)
                published = thread.submit(publish, step + 1)
            ends_s.append(time.monotonic())
            waits_s.append(wait_s)
            lags.append(float((step - np.concatenate([group.versions for group in batch.groups])).mean()))
        published.result(DEADLINE_S)
    num_warmup = min(STEPS_A_VERSION * (config.replay.max_staleness + 1), setting.num_steps // 2)
    elapsed_s = ends_s[-1] - ends_s[num_warmup]
    num_samples = (setting.num_steps - num_warmup) * config.learner.batch_size * config.algorithm.group_size
    return Figure(num_samples / elapsed_s, fmean(lags[num_warmup + 1 :]), sum(waits_s[num_warmup + 1 :]) / elapsed_s)


def predict(setting: Setting) -> Figure:
    """The same figures of the simulated run."""
    result = figures(simulate(setting))
    return Figure(result.samples_per_s, result.staleness_mean, result.learner_idle)


def line(name: str, measured: Figure, simulated: Figure) -> str:
    """Of the table that `HEADER` begins."""
    speeds = f"{measured.samples_per_s:.1f} | {simulated.samples_per_s:.1f} | {_error(measured, simulated):+.1%}"
    lags = f"{measured.staleness_mean:.2f} | {simulated.staleness_mean:.2f}"
    idle = f"{measured.learner_idle:.0%} | {simulated.learner_idle:.0%}"
    return f"| {name} | {speeds} | {lags} | {idle} | {os.getloadavg()[0]:.0f} |"


def compared(name: str, measured: Figure, simulated: Figure) -> list[Measurement]:
    """Rows of one setting."""
    return [
        Measurement(f"{name}: samples_per_s", [measured.samples_per_s], "more"),
        Measurement(f"{name}: simulation_off_by", [abs(_error(measured, simulated))], "less"),
    ]


def _error(measured: Figure, simulated: Figure) -> float:
    return simulated.samples_per_s / measured.samples_per_s - 1


def main() -> int:
    parser = argparse.ArgumentParser(description="The simulator against the real replay with compute that waits.")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="settings, by name")
    parser.add_argument("--out", type=Path, metavar="FILE.jsonl")
    arguments = parser.parse_args()
    rows: list[Measurement] = []
    print(HEADER)
    for name, setting in settings(arguments.steps).items():
        if arguments.only and name not in arguments.only:
            continue
        measured, simulated = emulate(setting), predict(setting)
        rows += compared(name, measured, simulated)
        print(line(name, measured, simulated), flush=True)
    if arguments.out is not None:
        write_rows(arguments.out, "emulation", rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
