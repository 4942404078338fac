"""The wire format: one header frame, then raw array frames. No pickle.

    frame 0   b"ARL" + schema version (1 byte) + msgpack of one message
    frame 1…  raw little-endian arrays, whose dtype and length the header fixes

A message is checked for its schema version, its size, its type and (for groups) the exact size of each frame before any
of it is used.
"""

from __future__ import annotations

from collections.abc import Sequence, Sized

import msgspec
import numpy as np
from numpy.typing import NDArray

from asyncrl.errors import WireError
from asyncrl.transport.messages.rollouts import GroupHeader
from asyncrl.transport.messages.schema import AnyMessage
from asyncrl.types import Group, sampled_tokens

SCHEMA_VERSION = 4
MAGIC = b"ARL" + bytes([SCHEMA_VERSION])
MAX_HEADER_BYTES = 64 << 20
"""A batch of 1024 groups with sample texts has a header of about 1 MB; a weight update names every parameter."""

FRAMES_PER_GROUP = 6
"""prompt tokens int32 [P], tokens int32 [T], logprobs float32 [T], versions int32 [T], support ids int32 [Σ sizes],
support sizes int32 [T]; the last two are empty where the whole vocabulary was sampled from."""
_VERSIONS_FRAME = 3
_SIZES_FRAME = 5

Frame = bytes | memoryview

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(AnyMessage)


def encode(message: AnyMessage, frames: Sequence[Frame] = ()) -> list[Frame]:
    """The multipart frames of one message."""
    return [MAGIC + _encoder.encode(message), *frames]


def decode(parts: Sequence[Frame]) -> tuple[AnyMessage, list[Frame]]:
    """One message and its raw frames.

    Raises:
        WireError: not ours, of another schema version, too large, or not of the schema.
    """
    if not parts:
        raise WireError("empty message")
    header = memoryview(parts[0])
    if header[:3] != MAGIC[:3]:
        raise WireError("message does not start with the asyncrl magic bytes")
    if header[3:4] != MAGIC[3:]:
        raise WireError(f"message of schema version {bytes(header[3:4]).hex()}, this process speaks {SCHEMA_VERSION}")
    if len(header) > MAX_HEADER_BYTES:
        raise WireError(f"message header of {len(header)} bytes is over the limit of {MAX_HEADER_BYTES}")
    try:
        message = _decoder.decode(header[4:])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:  # msgspec lets the last two through
        raise WireError(f"message does not fit the schema: {error}") from error
    return message, list(parts[1:])


def group_to_wire(group: Group) -> tuple[GroupHeader, list[Frame]]:
    """The header and the frames of a group."""
    header = GroupHeader(
        index=group.index,
        row=group.row,
        num_prompt_tokens=len(group.prompt_token_ids),
        lengths=group.lengths.tolist(),
        rewards=group.rewards.tolist(),
        correct=group.correct.tolist(),
        truncated=group.truncated.tolist(),
        sample_text=group.sample_text,
        spans=group.spans,
        turn_rewards=group.turn_rewards,
        environment_s=group.environment_s,
        term_scores=group.term_scores,
        data_set=group.data_set,
        engine=group.engine,
    )
    arrays = (
        (group.prompt_token_ids, "<i4"),
        (group.tokens, "<i4"),
        (group.logprobs, "<f4"),
        (group.versions, "<i4"),
        (group.support_ids, "<i4"),
        (group.support_sizes, "<i4"),
    )
    return header, [np.ascontiguousarray(array, dtype).view(np.uint8).data for array, dtype in arrays]


def check_group(header: GroupHeader, frames: Sequence[Frame]) -> None:
    """Does every frame have exactly the size that the header says?

    Raises:
        WireError: it does not, the per-completion lists differ in length, spans do not cover their completions, turns
            have not one reward each, or a sampled token has no set to be sampled from.
    """
    group_size = len(header.lengths)
    by_completion: list[Sized] = [header.rewards, header.correct, header.truncated, *header.term_scores.values()]
    if any(len(values) != group_size for values in by_completion):
        raise WireError(f"group {header.index}: lists of unequal length")
    if group_size == 0 or min(header.lengths) < 1 or header.num_prompt_tokens < 1:
        raise WireError(f"group {header.index}: empty group, completion or prompt")
    if header.spans and not _spans_fit(header.spans, header.lengths):
        raise WireError(f"group {header.index}: its spans do not cover its completions")
    num_turns = [len(runs) // 2 + 1 for runs in header.spans or [[]] * group_size]
    if header.turn_rewards and [len(rewards) for rewards in header.turn_rewards] != num_turns:
        raise WireError(f"group {header.index}: not one reward for each turn")
    if len(frames) != FRAMES_PER_GROUP:
        raise WireError(f"group {header.index}: {len(frames)} frames instead of {FRAMES_PER_GROUP}")
    num_tokens = sum(header.lengths)
    num_support_ids, num_sizes = _support_lengths(header, frames[_SIZES_FRAME])
    expected = (header.num_prompt_tokens, num_tokens, num_tokens, num_tokens, num_support_ids, num_sizes)
    for frame, count in zip(frames, expected, strict=True):
        if memoryview(frame).nbytes != 4 * count:
            raise WireError(f"group {header.index}: a frame of {memoryview(frame).nbytes} bytes instead of {4 * count}")


def _support_lengths(header: GroupHeader, sizes_frame: Frame) -> tuple[int, int]:
    """Ids and sizes that there have to be."""
    num_tokens, num_bytes = sum(header.lengths), memoryview(sizes_frame).nbytes
    if num_bytes == 0:
        return 0, 0
    if num_bytes != 4 * num_tokens:
        raise WireError(f"group {header.index}: support sizes of {num_bytes} bytes instead of {4 * num_tokens}")
    sizes = np.frombuffer(sizes_frame, "<i4")
    if ((sizes > 0) != sampled_tokens(header.lengths, header.spans)).any() or sizes.min() < 0:
        raise WireError(f"group {header.index}: not every sampled token, and no other, has tokens to be sampled from")
    return int(sizes.sum(dtype=np.int64)), num_tokens


def _spans_fit(spans: list[list[int]], lengths: list[int]) -> bool:
    return len(spans) == len(lengths) and all(
        len(runs) % 2 == 1 and min(runs) >= 1 and sum(runs) == length
        for runs, length in zip(spans, lengths, strict=True)
    )


def sampled_versions(header: GroupHeader, frames: Sequence[Frame]) -> NDArray[np.int32]:
    """The versions of a checked group's sampled tokens, environment tokens left out."""
    return np.frombuffer(frames[_VERSIONS_FRAME], "<i4")[sampled_tokens(header.lengths, header.spans)]


def group_from_wire(header: GroupHeader, frames: Sequence[Frame]) -> Group:
    """The group, its arrays as views of the frames.

    Raises:
        WireError: the frames do not fit the header.
    """
    check_group(header, frames)
    return Group(
        index=header.index,
        row=header.row,
        prompt_token_ids=np.frombuffer(frames[0], "<i4"),
        lengths=np.asarray(header.lengths, np.int32),
        tokens=np.frombuffer(frames[1], "<i4"),
        logprobs=np.frombuffer(frames[2], "<f4"),
        versions=np.frombuffer(frames[_VERSIONS_FRAME], "<i4"),
        rewards=np.asarray(header.rewards, np.float32),
        correct=np.asarray(header.correct, np.bool_),
        truncated=np.asarray(header.truncated, np.bool_),
        sample_text=header.sample_text,
        spans=header.spans,
        turn_rewards=header.turn_rewards,
        environment_s=header.environment_s,
        term_scores=header.term_scores,
        data_set=header.data_set,
        engine=header.engine,
        support_ids=np.frombuffer(frames[4], "<i4"),
        support_sizes=np.frombuffer(frames[_SIZES_FRAME], "<i4"),
    )
