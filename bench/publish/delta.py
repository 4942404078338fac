"""Deltas between versions, without an engine: how small they are, and how fast they are made and read.

    .venv/bin/python bench/publish/delta.py [--lr 1e-6] [--updates 50]

See bench/README.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import asdict, dataclass

import torch

from asyncrl.publish.delta import decode, encode


@dataclass
class DeltaFigures:
    """Deltas of 16 million weights, N(0, 0.02²), under AdamW with random gradients: medians over the updates."""

    lr: float
    updates: int
    changed: float
    """Share of the bfloat16 weights that an update changes."""
    ratio: float
    """Bytes of the whole ÷ bytes of the delta."""
    encode_gb_per_s: float
    decode_gb_per_s: float


def measure(lr: float, updates: int) -> DeltaFigures:
    torch.manual_seed(0)
    weights = torch.nn.Parameter(0.02 * torch.randn(1 << 24))
    optimizer = torch.optim.AdamW([weights], lr=lr, weight_decay=0.0)
    held, figures = weights.detach().bfloat16(), []
    for _ in range(updates):
        weights.grad = torch.randn_like(weights)
        optimizer.step()
        new = weights.detach().bfloat16()
        changed = (held != new).float().mean().item()
        start_s = time.perf_counter()
        encoded = encode(held.view(torch.uint8), new.view(torch.uint8))
        encoded_s = time.perf_counter()
        decode(encoded, held.view(torch.uint8))
        decoded_s = time.perf_counter()
        assert torch.equal(held, new), "a delta that is not exact"
        gigabytes = new.nbytes / 1e9
        rates = (gigabytes / (encoded_s - start_s), gigabytes / (decoded_s - encoded_s))
        figures.append((changed, new.nbytes / encoded.numel(), *rates))
    return DeltaFigures(lr, updates, *(statistics.median(column) for column in zip(*figures, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--lr", type=float, default=1e-6)
    parser.add_argument("--updates", type=int, default=50)
    arguments = parser.parse_args()
    print(json.dumps(asdict(measure(arguments.lr, arguments.updates))))


if __name__ == "__main__":
    main()
