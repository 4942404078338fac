"""The output head: time, peak memory and gradient of `token_logprobs` beside logits held whole.

    .venv/bin/python bench/pipeline/logprob.py [--tokens 4096] [--vocabulary 151936] [--hidden 1024] [--threads 1]
        [--repeats 1] [--out FILE.jsonl]

Each of the two runs in a process of its own, forward and backward once, in float32 on the CPU, in turn. Peak memory is
what the process took beyond its inputs.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from asyncrl.config.logit_transform import LogitTransform
from asyncrl.learn.policy.logprob import token_logprobs
from bench.support.rows import Measurement, write_rows


@dataclass(frozen=True)
class Measured:
    """One forward and backward pass."""

    seconds: float
    peak_bytes: int
    sample: Tensor
    """A few rows of the gradients of hidden states and head."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("tokens", 4096), ("vocabulary", 151_936), ("hidden", 1024), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--out", type=Path, metavar="FILE.jsonl", help="writes each figure as a row")
    options = parser.parse_args()
    sizes = (options.tokens, options.vocabulary, options.hidden, options.threads)
    pairs = [(_measured("whole", *sizes), _measured("chunked", *sizes)) for _ in range(options.repeats)]
    for whole, chunked in pairs:
        _show(whole, chunked)
    if options.out is not None:
        write_rows(options.out, "logprob", rows(pairs))


def rows(pairs: Sequence[tuple[Measured, Measured]]) -> list[Measurement]:
    """Whole and chunked, of each repeat."""
    return [
        Measurement("seconds_over_whole", [chunked.seconds / whole.seconds for whole, chunked in pairs], "less"),
        Measurement("peak_over_whole", [chunked.peak_bytes / whole.peak_bytes for whole, chunked in pairs], "less"),
        Measurement("chunked_seconds", [chunked.seconds for _, chunked in pairs], "less"),
    ]


def _show(whole: Measured, chunked: Measured) -> None:
    print(f"whole:   {whole.seconds:6.1f} s, {whole.peak_bytes / 1e9:5.2f} GB")
    print(f"chunked: {chunked.seconds:6.1f} s, {chunked.peak_bytes / 1e9:5.2f} GB")
    difference = (whole.sample - chunked.sample).abs().max() / whole.sample.abs().max()
    print(
        f"time {chunked.seconds / whole.seconds:.2f} of whole, memory 1/{whole.peak_bytes / chunked.peak_bytes:.1f}, "
        f"gradients differ by {difference:.1e} of the largest"
    )


def _measured(kind: str, *sizes: int) -> Measured:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measure, kind, *sizes).result()


def _measure(kind: str, num_tokens: int, vocabulary: int, hidden_size: int, num_threads: int) -> Measured:
    torch.set_num_threads(num_threads)
    torch.manual_seed(0)
    hidden = torch.randn(num_tokens, hidden_size, requires_grad=True)
    head = nn.Linear(hidden_size, vocabulary, bias=False)
    targets, weights = torch.randint(vocabulary, (num_tokens,)), torch.rand(num_tokens)
    before = _peak_bytes()
    started = time.perf_counter()
    if kind == "whole":
        logprobs = head(hidden).log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)
    else:
        logprobs, _ = token_logprobs(hidden, head, targets, 1.0, LogitTransform())
    (weights * logprobs).sum().backward()
    seconds = time.perf_counter() - started
    assert hidden.grad is not None
    assert head.weight.grad is not None
    sample = torch.cat([hidden.grad[:64], head.weight.grad[targets[:64]]])
    return Measured(seconds, _peak_bytes() - before, sample)


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
