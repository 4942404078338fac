"""The output head by itself on one device: the learner's beside those of Liger and Cut Cross-Entropy, if installed.

The learner's comes as `learner.compile` and `model.float32_head` make it too.

Forward and backward of T tokens' log-probabilities over V columns from H features, in bfloat16. All weigh each token's
gradient by a number of its own, as a policy gradient does. The learner's head also computes entropies; the others do
not. Hidden states and head are random, so probabilities are almost uniform. Cut Cross-Entropy by default leaves out
gradients that bfloat16 would not show in a trained model; of uniform probabilities these are nearly all, so it is also
measured without that filter. How far gradients differ from the learner's is said beside each.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from asyncrl.config.logit_transform import LogitTransform
from asyncrl.learn.policy.logprob import token_logprobs
from bench.support.device_memory import Peak, finish
from bench.support.own_process import in_process
from bench.support.rows import Measurement

NUM_UNCOUNTED = 2
NUM_SAMPLED = 64
"""Rows of each gradient that are compared."""


class HeadSizes(NamedTuple):
    """T, H and V."""

    num_tokens: int
    hidden: int
    vocabulary: int


@dataclass(frozen=True)
class MeasuredHead:
    """Of one implementation."""

    seconds: list[float]
    """Of each forward and backward pass."""
    peak_bytes: int
    """Inputs and their gradients included."""
    sample: NDArray[np.float32]
    """A few rows of the gradients of hidden states and head."""


def learner_head(hidden: Tensor, head: nn.Linear, targets: Tensor, **options: Any) -> Tensor:
    """[T, H], [T] → log-probabilities [T]; so do the others."""
    return token_logprobs(hidden, head, targets, 1.0, LogitTransform(), **options)[0]


def liger_head(hidden: Tensor, head: nn.Linear, targets: Tensor) -> Tensor:
    loss = importlib.import_module("liger_kernel.transformers").LigerFusedLinearCrossEntropyLoss(reduction="none")
    losses: Tensor = loss(head.weight, hidden, targets)
    return -losses


def cut_head(hidden: Tensor, head: nn.Linear, targets: Tensor, **options: Any) -> Tensor:
    losses: Tensor = importlib.import_module("cut_cross_entropy").linear_cross_entropy(
        hidden, head.weight, targets, reduction="none", **options
    )
    return -losses


OWN = "asyncrl"
"""The package, and its head by default."""
HEADS: dict[str, tuple[str, Callable[[Tensor, nn.Linear, Tensor], Tensor]]] = {
    OWN: (OWN, learner_head),
    "asyncrl compiled": (OWN, partial(learner_head, compiled=True)),
    "asyncrl in float32": (OWN, partial(learner_head, float32_products=True)),
    "asyncrl in float32, compiled": (OWN, partial(learner_head, float32_products=True, compiled=True)),
    "liger": ("liger_kernel", liger_head),
    "cce": ("cut_cross_entropy", cut_head),
    "cce unfiltered": ("cut_cross_entropy", partial(cut_head, filter_eps=None)),
}
"""Name → the package that it needs, and what computes it."""


def measure_heads(sizes: HeadSizes, device: str, num_repeats: int) -> list[Measurement]:
    """Prints a line for each head, those left out included."""
    print(f"{sizes.num_tokens} x {sizes.hidden} x {sizes.vocabulary}, bfloat16, on {device}")
    measured: dict[str, MeasuredHead] = {}
    for name, (package, _) in HEADS.items():
        if find_spec(package) is None:
            print(f"{name}: left out, {package} is not installed")
        elif package != OWN and device == "cpu":
            print(f"{name}: left out, its kernels need a GPU")
        else:
            try:
                measured[name] = in_process(measure_head, name, sizes, device, num_repeats)
            except EOFError:  # its process died and said why
                if package == OWN:
                    raise
                print(f"{name}: left out, it failed")
                continue
            _show(name, measured[name], measured[OWN].sample)
    return [row for name, one in measured.items() for row in rows(name, one)]


def rows(name: str, measured: MeasuredHead) -> list[Measurement]:
    """Milliseconds of each repeat, and bytes."""
    return [
        Measurement(f"{name}: head_ms", [1e3 * seconds for seconds in measured.seconds], "less"),
        Measurement(f"{name}: head_peak_bytes", [measured.peak_bytes], "less"),
    ]


def measure_head(name: str, sizes: HeadSizes, device: str, num_repeats: int) -> MeasuredHead:
    """In a process of its own, so that the peak is its own."""
    torch.manual_seed(0)
    peak, seconds = Peak(device), []
    options: dict[str, Any] = {"device": device, "dtype": torch.bfloat16}
    hidden = torch.randn(sizes.num_tokens, sizes.hidden, requires_grad=True, **options)
    head = nn.Linear(sizes.hidden, sizes.vocabulary, bias=False, **options)
    targets = torch.randint(sizes.vocabulary, (sizes.num_tokens,), device=device)
    weights = torch.rand(sizes.num_tokens, device=device)
    for _ in range(NUM_UNCOUNTED + num_repeats):
        hidden.grad = head.weight.grad = None
        finish(device)
        begun_s = time.perf_counter()
        logprobs = HEADS[name][1](hidden, head, targets)
        (weights * logprobs).sum().backward()
        finish(device)
        seconds.append(time.perf_counter() - begun_s)
    assert hidden.grad is not None
    assert head.weight.grad is not None
    most = peak.num_bytes
    sample = torch.cat([hidden.grad[:NUM_SAMPLED], head.weight.grad[targets[:NUM_SAMPLED]]])
    return MeasuredHead(seconds[NUM_UNCOUNTED:], most, sample.float().cpu().numpy())


def _show(name: str, measured: MeasuredHead, own: NDArray[np.float32]) -> None:
    difference = np.abs(measured.sample - own).max() / np.abs(own).max()
    beside_own = "" if name == OWN else f", gradients differ by {difference:.1e} of the largest"
    milliseconds = f"{1e3 * median(measured.seconds):.1f} ms (median of {len(measured.seconds)})"
    print(f"{name}: {milliseconds}, {measured.peak_bytes / 1e9:.2f} GB{beside_own}")
