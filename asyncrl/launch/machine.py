"""The machine this process runs on, as a node that can be planned for."""

from __future__ import annotations

import os

import torch

from asyncrl.launch.topology import Node


def this_node() -> Node:
    """The CPUs this process may use and the GPUs torch sees."""
    has_affinity = hasattr(os, "sched_getaffinity")  # not on macOS
    num_cpus = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return Node(num_cpus=num_cpus, num_gpus=torch.cuda.device_count())
