"""Draws tokens by a seed and a position: one number for a row, and the inverse of the distribution function. Pure."""

from __future__ import annotations

import torch

GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
MIX = (0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64))
"""SplitMix64's constants (Steele, Lea & Flood 2014), as int64."""


def draw(probs: torch.Tensor, seeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """A token of each row.

    Args:
        probs: float [rows, vocabulary].
        seeds: int64 [rows].
        positions: int64 [rows], of the token before.

    Returns:
        int64 [rows].
    """
    cumulative = probs.double().cumsum(dim=-1)
    total = cumulative[:, -1]
    at = torch.minimum(uniform(seeds, positions) * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, at[:, None], right=True)[:, 0]


def uniform(seeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """float64 in [0, 1) from SplitMix64, whose stream number `seed` is read at place `position`."""
    mixed = _mix(_mix(seeds * GOLDEN) + (positions.to(torch.int64) + 1) * GOLDEN)
    return (mixed >> 11 & (1 << 53) - 1).double() * 2.0**-53


def _mix(words: torch.Tensor) -> torch.Tensor:
    words = (words ^ _shifted(words, 30)) * MIX[0]
    words = (words ^ _shifted(words, 27)) * MIX[1]
    return words ^ _shifted(words, 31)


def _shifted(words: torch.Tensor, by: int) -> torch.Tensor:
    """To the right as unsigned words."""
    return words >> by & (1 << 64 - by) - 1
