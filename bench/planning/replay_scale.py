"""What does a group cost the replay process, with how many generators, and where does one replay process end?

    .venv/bin/python -m bench replay_scale [--generators 16 64 256 1024] [--kilobytes 16] [--groups 8000]

The real replay server in a process of its own, with its ledger on disk (`replay.durability=full`) and keys. As many
sockets as there are generators answer each lease at once with a group of so many bytes; the learner takes each batch
and says at once that the next version is served. So replay is all that takes time, and the processes that stand for
generators and learner share the cores with it. CPU seconds are those of the replay process alone, all its threads.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import numpy as np
import zmq

from asyncrl.config.load import load
from asyncrl.replay.learner_client import LearnerClient
from asyncrl.transport.messages.base import Ack
from asyncrl.transport.messages.rollouts import GroupDone, Hello, LeaseGrant, Serving
from asyncrl.transport.sockets import Keys, Network, bind, connect
from asyncrl.transport.wire import decode, encode, group_to_wire
from bench.support.groups import GROUP_SIZE, group_of
from bench.support.processes import cpu_s
from bench.support.replay import serve_replay
from bench.support.rows import Measurement, write_rows

CONTEXT = multiprocessing.get_context("spawn")
CREDIT = 4
STALENESS = 2
DEADLINE_S = 120.0
NUM_PEERS_A_PROCESS = 512


@dataclass(frozen=True)
class Figures:
    """Of the second half of the steps."""

    groups_per_s: float
    cpu_us_a_group: float
    """Of the replay process."""
    cores: float
    """That the replay process kept busy."""


def serve(network: Network, folder: str, batch_size: int, num_steps: int, pipe: Connection) -> None:
    """Replay, in a process of its own, until it is killed."""
    context: zmq.Context = zmq.Context.instance()
    socket, endpoint = bind(context, network)
    pipe.send(endpoint)
    settings = [f"learner.batch_size={batch_size}", f"algorithm.group_size={GROUP_SIZE}"]
    settings += [f"replay.max_staleness={STALENESS}", f"generator.max_groups_in_flight={CREDIT}"]
    config = load(None, ["model.path=tiny", "data.train=arithmetic", *settings])
    serve_replay(socket, network, config, num_steps, Path(folder))


def answer(
    network: Network, endpoint: str, names: list[str], num_bytes: int, version: Synchronized[int], ready: Connection
) -> None:
    """Generators that take no time, in a process of its own, until it is killed."""
    context: zmq.Context = zmq.Context()
    context.set(zmq.MAX_SOCKETS, 2 * len(names) + 16)
    poller = zmq.Poller()
    for name in names:
        socket = connect(context, network, endpoint, name)
        socket.send_multipart(encode(Hello(f"tcp://{name}", 1, CREDIT)))
        socket.send_multipart(encode(Serving()))
        poller.register(socket, zmq.POLLIN)
    group = group_of(num_bytes)
    ready.send(len(names))
    while True:
        for socket, _ in poller.poll():
            message, _ = decode(socket.recv_multipart())
            if isinstance(message, LeaseGrant):
                versions = np.full_like(group.versions, version.value)
                header, frames = group_to_wire(replace(group, index=message.index, row=message.row, versions=versions))
                socket.send_multipart(encode(GroupDone(message.lease_id, header), frames))
            else:
                assert isinstance(message, Ack)


def measure(num_generators: int, num_bytes: int, num_groups: int) -> Figures:
    """One run from the first lease to the last batch."""
    batch_size = max(32, num_generators)
    num_steps = max(6, num_groups // batch_size)
    network = Network(keys=Keys.generate())
    version = CONTEXT.Value("i", 0)
    names = [f"generator-{number}" for number in range(num_generators)]
    shares = [names[start : start + NUM_PEERS_A_PROCESS] for start in range(0, num_generators, NUM_PEERS_A_PROCESS)]
    processes = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            receiver, sender = CONTEXT.Pipe(duplex=False)
            replay = CONTEXT.Process(target=serve, args=(network, folder, batch_size, num_steps, sender), daemon=True)
            processes.append(replay)
            replay.start()
            endpoint = _received(receiver)
            for share in shares:
                receiver, sender = CONTEXT.Pipe(duplex=False)
                peers = CONTEXT.Process(
                    target=answer, args=(network, endpoint, share, num_bytes, version, sender), daemon=True
                )
                processes.append(peers)
                peers.start()
                _received(receiver)
            assert replay.pid is not None
            return _learn(network, endpoint, num_generators, batch_size, num_steps, version, replay.pid)
        finally:
            for process in processes:
                process.kill()
                process.join()


def _received(receiver: Connection) -> str:
    if not receiver.poll(DEADLINE_S):
        raise SystemExit(f"a process did not start within {DEADLINE_S:.0f} s")
    return str(receiver.recv())


def _learn(
    network: Network,
    endpoint: str,
    num_generators: int,
    batch_size: int,
    num_steps: int,
    version: Synchronized[int],
    replay_pid: int,
) -> Figures:
    learner = LearnerClient("learner-0", network, endpoint, threading.Event())
    learner.wait_for_generators(num_generators, DEADLINE_S)
    learner.published(0, DEADLINE_S)
    half = num_steps // 2
    for step in range(num_steps):
        if step == half:
            begun_s, begun_cpu_s = time.perf_counter(), cpu_s(iter([replay_pid]))
        learner.batch(step, DEADLINE_S, None)
        version.value = step + 1
        learner.published(step + 1, DEADLINE_S)
    elapsed_s, used_s = time.perf_counter() - begun_s, cpu_s(iter([replay_pid])) - begun_cpu_s
    learner.close()
    num_groups = (num_steps - half) * batch_size
    return Figures(num_groups / elapsed_s, 1e6 * used_s / num_groups, used_s / elapsed_s)


def main() -> int:
    parser = argparse.ArgumentParser(description="What a group costs the replay process.")
    parser.add_argument("--generators", type=int, nargs="+", default=[16, 64, 256, 1024])
    parser.add_argument("--kilobytes", type=int, nargs="+", default=[16], help="of a group (default: 16)")
    parser.add_argument("--groups", type=int, default=8000, help="of each run, half of them measured")
    parser.add_argument("--out", type=Path, metavar="FILE.jsonl", help="writes each figure as a row")
    arguments = parser.parse_args()
    rows: list[Measurement] = []
    print("| generators | KB a group | groups/s | MB/s | replay's CPU, µs a group | its cores | load |")
    print("|---|---|---|---|---|---|---|")
    for kilobytes in arguments.kilobytes:
        for num_generators in arguments.generators:
            figures = measure(num_generators, 1000 * kilobytes, arguments.groups)
            speeds = f"{figures.groups_per_s:,.0f} | {figures.groups_per_s * kilobytes / 1000:.0f}"
            costs = f"{figures.cpu_us_a_group:.0f} | {figures.cores:.2f} | {os.getloadavg()[0]:.0f}"
            print(f"| {num_generators} | {kilobytes} | {speeds} | {costs} |", flush=True)
            name = f"{num_generators} generators, {kilobytes} KB"
            rows.append(Measurement(f"{name}: cpu_us_a_group", [figures.cpu_us_a_group], "less"))
    if arguments.out is not None:
        write_rows(arguments.out, "replay_scale", rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
