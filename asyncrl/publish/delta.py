"""What changed between two versions of a bucket, in few bytes, and exactly.

A reinforcement learning step in bfloat16 leaves about 99 of 100 weights as they are, and moves most others by one unit
in the last place. So a bucket is taken as 16-bit words, and of each word that changed two numbers are kept: how many
unchanged ones come before it (a byte; 255 means 255 and more to come), and by how much its bit pattern changed (zigzag,
low bytes before high bytes). zlib takes what is regular out of both.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
import torch

_COUNT = struct.Struct("<Q")
_ESCAPE = 255


def encode(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """Both uint8 [n] on the CPU, n even. Returns uint8 [m]."""
    before, after = old.view(torch.int16), new.view(torch.int16)
    changed = torch.nonzero(before != after).flatten()
    differences = (after[changed] - before[changed]).numpy()  # wraps around, and back again in decode
    zigzag = ((differences << 1) ^ (differences >> 15)).view(np.uint8).reshape(-1, 2).T
    gaps = _encode_gaps(np.diff(changed.numpy(), prepend=-1) - 1)
    packed = zlib.compress(_COUNT.pack(len(gaps)) + gaps.tobytes() + zigzag.tobytes(), 1)
    return torch.frombuffer(bytearray(packed), dtype=torch.uint8)


def decode(encoded: torch.Tensor, buffer: torch.Tensor) -> None:
    """Makes the new bytes of the old ones, in place.

    Raises:
        ValueError: these are no changes of this buffer.
    """
    try:
        raw = zlib.decompress(encoded.numpy().tobytes())
        (num_gap_bytes,) = _COUNT.unpack_from(raw)
        gaps = np.frombuffer(raw, np.uint8, num_gap_bytes, _COUNT.size)
        planes = np.frombuffer(raw, np.uint8, offset=_COUNT.size + num_gap_bytes).reshape(2, -1)
    except (zlib.error, struct.error) as error:
        raise ValueError(f"a damaged delta: {error}") from error
    zigzag = np.ascontiguousarray(planes.T).view(np.uint16).reshape(-1)
    differences = (zigzag >> 1).view(np.int16) ^ -(zigzag & 1).view(np.int16)
    positions = _decode_gaps(gaps)
    words = buffer.view(torch.int16).numpy()
    if len(positions) != len(differences) or (len(positions) and positions[-1] >= len(words)):
        raise ValueError("a delta of another bucket")
    words[positions] += differences


def _encode_gaps(gaps: np.ndarray) -> np.ndarray:
    num_escapes = gaps // _ESCAPE
    coded = np.full(int(num_escapes.sum()) + len(gaps), _ESCAPE, np.uint8)
    coded[np.cumsum(num_escapes + 1) - 1] = gaps % _ESCAPE
    return coded


def _decode_gaps(coded: np.ndarray) -> np.ndarray:
    """Positions of the changed words."""
    ends = np.flatnonzero(coded != _ESCAPE)
    return np.cumsum(coded, dtype=np.int64)[ends] + np.arange(len(ends))
