"""A group on its way to replay and its acknowledgement back, beside raw pyzmq with the same bytes.

    .venv/bin/python -m bench.pipeline.transport [--sizes KB ...] [--seconds 2] [--repeats 3] [--out FILE]

Six servers, each in a process of its own, take the same groups over loopback:

    pyzmq          a ROUTER that receives the frames and answers four bytes: the bound
    pyzmq, keys    the same with CURVE
    wire           the project's sockets and messages: encoded, decoded, checked, acknowledged
    wire, keys     with CURVE, as every run has it
    replay, off    the real replay server and its ledger, `replay.durability=off`, keys
    replay, full   the same with `replay.durability=full`: acknowledged once it is on disk
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

import zmq

from asyncrl.config.load import load
from asyncrl.config.schema import Config
from asyncrl.replay.learner_client import LearnerClient
from asyncrl.transport.messages.base import Ack
from asyncrl.transport.messages.rollouts import GroupDone, Hello, LeaseGrant, Serving
from asyncrl.transport.sockets import Keys, Network, bind, connect
from asyncrl.transport.wire import check_group, decode, encode, group_to_wire
from bench.support.groups import GROUP_SIZE, group_of
from bench.support.replay import serve_replay
from bench.support.rows import Measurement, write_rows

WINDOW = 64
"""Groups in flight while throughput is measured. Replay acknowledges after up to 10 ms, so that groups share a
transaction: with fewer in flight, that wait is all that would be measured."""
ACKNOWLEDGED = b"done"
DEADLINE_MS = 60_000
MAX_GROUPS = 4000
"""A replay server keeps them all, as there is no learner: together with the bytes below, this bounds the disk."""
MAX_BYTES = 1 << 30


@dataclass(frozen=True)
class Server:
    """A process that takes groups.

    Args:
        network: where it binds, and with which keys.
        durability: of the replay server; None = no replay server.
        speaks_wire: messages of the project; else bare frames.
    """

    network: Network
    durability: str | None = None
    speaks_wire: bool = True


def servers() -> dict[str, Server]:
    keyed = Network(keys=Keys.generate())
    return {
        "pyzmq": Server(Network(), speaks_wire=False),
        "pyzmq, keys": Server(keyed, speaks_wire=False),
        "wire": Server(Network()),
        "wire, keys": Server(keyed),
        "replay, off": Server(keyed, "off"),
        "replay, full": Server(keyed, "full"),
    }


def serve(server: Server, folder: str, pipe: Connection) -> None:
    """Runs in a process of its own, until it is killed."""
    context: zmq.Context = zmq.Context.instance()
    socket, endpoint = bind(context, server.network)
    pipe.send(endpoint)
    if server.durability is not None:
        serve_replay(socket, server.network, _replay_config(server.durability), 1, Path(folder))
    while True:
        identity, *parts = socket.recv_multipart(copy=False)
        if not server.speaks_wire:
            socket.send_multipart([identity, ACKNOWLEDGED])
            continue
        message, frames = decode([part.buffer for part in parts])
        assert isinstance(message, GroupDone)
        check_group(message.header, frames)
        socket.send_multipart([identity, *encode(Ack(message.lease_id))])


def _replay_config(durability: str) -> Config:
    settings = [f"learner.batch_size={MAX_GROUPS}", f"algorithm.group_size={GROUP_SIZE}", "replay.max_staleness=0"]
    return load(None, ["model.path=tiny", "data.train=arithmetic", *settings, f"replay.durability={durability}"])


class Client:
    """Sends groups as a generator does, and waits for each acknowledgement."""

    def __init__(self, server: Server, endpoint: str, num_bytes: int) -> None:
        self._server = server
        context: zmq.Context = zmq.Context.instance()
        self._socket = connect(context, server.network, endpoint, "generator-0")
        self._socket.setsockopt(zmq.RCVTIMEO, DEADLINE_MS)
        self._group = group_of(num_bytes)
        header, frames = group_to_wire(self._group)
        self._bare = encode(GroupDone(0, header), frames)
        self._leases: list[LeaseGrant] = []
        self._num_acknowledged = 0
        if server.durability is not None:
            self._socket.send_multipart(encode(Hello("tcp://generator-0", 1, WINDOW)))
            self._socket.send_multipart(encode(Serving()))
            learner = LearnerClient("learner-0", server.network, endpoint, threading.Event())
            learner.published(0, DEADLINE_MS / 1e3)  # which opens admission
            learner.close()

    def send(self) -> None:
        """One group. Waits for a lease where the server grants them."""
        if not self._server.speaks_wire:
            self._socket.send_multipart(self._bare, copy=False)
            return
        lease_id, index = 0, 0
        if self._server.durability is not None:
            while not self._leases:
                self._take()
            lease = self._leases.pop(0)
            lease_id, index = lease.lease_id, lease.index
        header, frames = group_to_wire(replace(self._group, index=index))
        self._socket.send_multipart(encode(GroupDone(lease_id, header), frames), copy=False)

    def wait_for(self, num_acknowledged: int) -> None:
        """Until so many groups have been acknowledged since the beginning."""
        while self._num_acknowledged < num_acknowledged:
            self._take()

    def _take(self) -> None:
        parts = self._socket.recv_multipart()
        if not self._server.speaks_wire:
            self._num_acknowledged += 1
            return
        match decode(parts)[0]:
            case Ack():
                self._num_acknowledged += 1
            case LeaseGrant() as lease:
                self._leases.append(lease)
            case other:
                raise AssertionError(f"replay said {other}")

    def close(self) -> None:
        self._socket.close(0)


@dataclass(frozen=True)
class Figures:
    """What one server took of one size."""

    server: str
    kilobytes: int
    p50_us: float
    p99_us: float
    megabytes_per_s: float
    groups_per_s: float


def measure(name: str, server: Server, kilobytes: int, seconds: float) -> Figures:
    """Round trips one after another, then with WINDOW groups in flight, half of the time each."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with tempfile.TemporaryDirectory(dir=".") as folder:
        process = context.Process(target=serve, args=(server, folder, theirs), daemon=True)
        process.start()
        assert ours.poll(DEADLINE_MS / 1e3), "the server did not start"
        client = Client(server, ours.recv(), 1000 * kilobytes)
        try:
            return _measure(name, client, kilobytes, seconds)
        finally:
            client.close()
            process.kill()
            process.join()


def _measure(name: str, client: Client, kilobytes: int, seconds: float) -> Figures:
    most = min(MAX_GROUPS, MAX_BYTES // (1000 * kilobytes)) - WINDOW
    num_sent = 0

    def exchange(num_in_flight: int, until: Callable[[], bool]) -> list[float]:
        """Seconds from each acknowledgement to the next."""
        nonlocal num_sent
        times_s, last_s = [], time.perf_counter()
        first = num_sent
        while not until():
            client.send()
            num_sent += 1
            if num_sent - first >= num_in_flight:
                client.wait_for(num_sent - num_in_flight + 1)
                now_s = time.perf_counter()
                times_s.append(now_s - last_s)
                last_s = now_s
        client.wait_for(num_sent)
        return times_s

    for _ in range(WINDOW):  # both sides warm
        exchange(1, lambda first=num_sent: num_sent > first)  # type: ignore[misc]
    half = num_sent + (most - num_sent) // 2
    end_s = time.perf_counter() + seconds / 2
    trips_s = exchange(1, lambda: num_sent >= half or time.perf_counter() > end_s)
    begun_s, begun = time.perf_counter(), num_sent
    end_s = begun_s + seconds / 2
    exchange(WINDOW, lambda: num_sent >= most or time.perf_counter() > end_s)
    rate = (num_sent - begun) / (time.perf_counter() - begun_s)
    percentiles = statistics.quantiles(trips_s, n=100)
    return Figures(name, kilobytes, 1e6 * percentiles[49], 1e6 * percentiles[98], rate * kilobytes / 1e3, rate)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[16, 200, 1000, 8000], metavar="KB")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each server and size")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, metavar="FILE.jsonl")
    arguments = parser.parse_args()
    figures = [
        measure(name, server, kilobytes, arguments.seconds)
        for _ in range(arguments.repeats)
        for kilobytes in arguments.sizes
        for name, server in servers().items()
    ]
    rows = [row for kilobytes in arguments.sizes for row in _show(kilobytes, figures)]
    if arguments.out is not None:
        write_rows(arguments.out, "transport", rows)


def _show(kilobytes: int, figures: list[Figures]) -> list[Measurement]:
    """Prints a table of the servers at one size, medians of the repeats; returns the same as rows."""
    of = {name: [each for each in figures if (each.server, each.kilobytes) == (name, kilobytes)] for name in servers()}
    print(f"\n| {kilobytes} KB | round trip p50, µs | p99, µs | MB/s | ÷ pyzmq | groups/s |\n|---|---|---|---|---|---|")
    rows: list[Measurement] = []
    for name, own in of.items():
        case = f"{name}, {kilobytes} KB: "
        p50 = Measurement(case + "p50_us", [each.p50_us for each in own], "less")
        p99 = Measurement(case + "p99_us", [each.p99_us for each in own], "less")
        rate = Measurement(case + "megabytes_per_s", [each.megabytes_per_s for each in own], "more")
        groups = Measurement(case + "groups_per_s", [each.groups_per_s for each in own], "more")
        pairs = zip(own, of["pyzmq"], strict=True)
        ratio = Measurement(
            case + "over_pyzmq", [one.megabytes_per_s / raw.megabytes_per_s for one, raw in pairs], "more"
        )
        times = f"{p50.median:,.0f} | {p99.median:,.0f}"
        print(f"| {name} | {times} | {rate.median:,.0f} | {ratio.median:.2f} | {groups.median:,.0f} |", flush=True)
        rows += [p50, p99, rate, groups, ratio]
    return rows


if __name__ == "__main__":
    main()
