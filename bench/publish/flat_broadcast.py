"""One gloo broadcast of a ready buffer to processes that do nothing with it: what a publish is compared with."""

from __future__ import annotations

import multiprocessing
import time

import torch

from asyncrl.publish.groups.rendezvous import Rendezvous, new_store_file

CPU = torch.device("cpu")


class FlatBroadcast:
    """Receivers in processes of their own; use it as a context manager. Broadcast as often as you like.

    Args:
        num_bytes: to each receiver.
    """

    def __init__(self, num_bytes: int, num_receivers: int, timeout_s: float) -> None:
        store_file = new_store_file(None)
        rendezvous = Rendezvous(store_file, timeout_s)
        self._num_receivers = num_receivers
        self._buffer = torch.ones(num_bytes, dtype=torch.uint8)
        context = multiprocessing.get_context("spawn")
        self._receivers = [
            context.Process(target=_receive, args=(store_file, rank, num_receivers, num_bytes, timeout_s))
            for rank in range(1, 1 + num_receivers)
        ]
        for receiver in self._receivers:
            receiver.start()
        self._group = rendezvous.group("gloo", CPU, "flat", 0, 1 + num_receivers)
        self.seconds()

    def __enter__(self) -> FlatBroadcast:
        return self

    def __exit__(self, *_: object) -> None:
        for receiver in self._receivers:
            receiver.kill()
            receiver.join()

    def seconds(self) -> float:
        """Of one broadcast, until each receiver has said that all has come."""
        start_s = time.perf_counter()
        self._group.broadcast(self._buffer).wait()
        for rank in range(1, 1 + self._num_receivers):
            self._group.reported(rank)
        return time.perf_counter() - start_s


def _receive(store_file: str, rank: int, num_receivers: int, num_bytes: int, timeout_s: float) -> None:
    group = Rendezvous(store_file, timeout_s).group("gloo", CPU, "flat", rank, 1 + num_receivers)
    buffer = torch.empty(num_bytes, dtype=torch.uint8)
    while True:  # until it is killed
        group.broadcast(buffer).wait()
        group.report(rank)
