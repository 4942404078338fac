"""The machine this process runs on, as a node for the topology."""

from __future__ import annotations

import os

import zmq

from asyncrl import devices
from asyncrl.cluster.topology import Node
from asyncrl.transport.sockets import Network, bind


def this_node() -> Node:
    """The CPUs this process may use and the GPUs torch sees."""
    has_affinity = hasattr(os, "sched_getaffinity")  # not on macOS
    num_cpus = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return Node(num_cpus=num_cpus, num_gpus=devices.count())


def require_free_port(port: int) -> None:
    """Refuses a port that is in use on this machine, before anything is started.

    Raises:
        ConfigError: names replay.port, the only one that is configured.
    """
    with zmq.Context() as context:
        socket, _ = bind(context, Network(), port)
        socket.close(0)
