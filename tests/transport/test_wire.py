import math
import random
from dataclasses import replace
from typing import get_args

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncrl.errors import WireError
from asyncrl.transport import wire
from asyncrl.transport.messages.publishing import Failed, JoinGroup
from asyncrl.transport.messages.rollouts import GroupDone, Hello, LeaseGrant
from asyncrl.transport.messages.schema import AnyMessage
from asyncrl.transport.messages.supervision import DumpStacks, Note, Stacks, Status
from asyncrl.transport.wire import MAGIC, check_group, decode, encode, group_from_wire, group_to_wire
from asyncrl.types import Group
from tests.support.wire import make_group

INT32 = st.integers(-(2**31), 2**31 - 1)
FLOAT32 = st.floats(width=32, allow_nan=True)


@st.composite
def groups(draw) -> Group:
    lengths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=6))
    size, num_tokens = len(lengths), sum(lengths)

    def array(elements, length, dtype):
        return np.asarray(draw(st.lists(elements, min_size=length, max_size=length)), dtype)

    group = Group(
        index=draw(st.integers(0, 2**40)),
        row=draw(st.integers(0, 2**40)),
        prompt_token_ids=array(INT32, draw(st.integers(1, 8)), np.int32),
        lengths=np.asarray(lengths, np.int32),
        tokens=array(INT32, num_tokens, np.int32),
        logprobs=array(FLOAT32, num_tokens, np.float32),
        versions=array(INT32, num_tokens, np.int32),
        rewards=array(FLOAT32, size, np.float32),
        correct=array(st.booleans(), size, np.bool_),
        truncated=array(st.booleans(), size, np.bool_),
        sample_text=draw(st.text(max_size=20)),
        spans=draw(st.just([]) | st.tuples(*map(spans_of, lengths)).map(list)),
        environment_s=draw(st.floats(0, 1e6)),
    )
    sizes = np.where(group.sampled, array(st.integers(1, 3), num_tokens, np.int32), np.int32(0))
    if draw(st.booleans()):
        group = replace(group, support_sizes=sizes, support_ids=array(INT32, int(sizes.sum()), np.int32))
    return replace(group, turn_rewards=draw(st.just([]) | st.just([[0.5] * turns for turns in group.num_turns])))


def spans_of(length: int) -> st.SearchStrategy[list[int]]:
    """Alternately sampled and the environment's; begins and ends with sampled tokens."""
    cuts = st.sets(st.integers(1, length - 1)) if length > 1 else st.just(set())
    return cuts.filter(lambda cuts: len(cuts) % 2 == 0).map(lambda cuts: np.diff([0, *sorted(cuts), length]).tolist())


def send(group: Group) -> tuple[GroupDone, list[bytes]]:
    """Through the wire as bytes, as a socket would carry it."""
    header, frames = group_to_wire(group)
    message, received = decode([bytes(part) for part in encode(GroupDone(3, header), frames)])
    assert isinstance(message, GroupDone)
    return message, received


@given(groups())
def test_a_group_arrives_as_it_was_sent(group):
    message, frames = send(group)
    arrived = group_from_wire(message.header, frames)
    for name in Group.__dataclass_fields__:
        sent, got = getattr(group, name), getattr(arrived, name)
        if isinstance(sent, np.ndarray):
            assert got.dtype == sent.dtype
            assert np.array_equal(got, sent, equal_nan=sent.dtype == np.float32)
        else:
            assert got == sent


def test_a_nan_reward_arrives_as_nan():
    message, frames = send(make_group(0, rewards=(math.nan, 1.0)))
    assert np.isnan(group_from_wire(message.header, frames).rewards).tolist() == [True, False]


@pytest.mark.parametrize(
    "message",
    [
        Hello("tcp://127.0.0.1:1", 2, 16),
        LeaseGrant(-4, 7, "eval", 12, [1, 2, 3], "2 + 3 =", "5", 8, 0.7, 2**62, 600.0),
        JoinGroup({"master_port": 1234, "names": ["a", "b"], "nested": {"shape": [1, 2]}}),
        Status("generating, 3 prompts", True, {"idle": 0.25}, 7),
        DumpStacks(),
        Stacks("Thread 0x1"),
        Failed("η ≥ 0"),
    ],
    ids=lambda message: type(message).__name__,
)
def test_a_message_arrives_as_it_was_sent(message):
    assert decode(encode(message, [b"x"])) == (message, [b"x"])


def test_every_message_has_a_tag_of_its_own():
    tags = [kind.__struct_config__.tag for kind in get_args(AnyMessage)]
    assert len(tags) == len(set(tags)) > 20


@given(st.lists(st.binary(max_size=60), max_size=3))
@settings(max_examples=1000)
def test_foreign_bytes_are_refused(parts):
    with pytest.raises(WireError):
        decode(parts)


@given(st.binary(max_size=60))
@settings(max_examples=1000)
def test_foreign_bytes_behind_our_magic_are_refused(body):
    with pytest.raises(WireError):
        decode([MAGIC + body])


EPISODES = replace(make_group(0, rewards=(1.0, math.nan, 0.0)), spans=[[1], [2], [1, 1, 1]])
EPISODES = replace(EPISODES, turn_rewards=[[1.0], [math.nan], [0.5, 0.5]], environment_s=0.5)


def valid_headers() -> list[bytes]:
    messages = [
        GroupDone(3, group_to_wire(make_group(0, rewards=(1.0, math.nan)))[0]),
        GroupDone(3, group_to_wire(EPISODES)[0]),
        Hello("tcp://127.0.0.1:1", 2, 16),
        LeaseGrant(1, 7, "train", 12, [1, 2, 3], "2 + 3 =", "5", 8, 0.7, 9, 600.0),
        JoinGroup({"a": [1, {"b": "text"}]}),
        Note("text"),
    ]
    return [bytes(encode(message)[0]) for message in messages]


def test_a_message_that_was_cut_short_anywhere_is_refused():
    for header in valid_headers():
        for length in range(len(header)):
            with pytest.raises(WireError):
                decode([header[:length]])


def test_ten_thousand_damaged_messages_are_read_or_refused_and_nothing_else():
    rng = random.Random(0)
    headers, frames = valid_headers(), [bytes(frame) for frame in group_to_wire(EPISODES)[1]]
    num_refused = 0
    for _ in range(10_000):
        damaged = bytearray(rng.choice(headers))
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        try:
            message, _ = decode([bytes(damaged)])
            if isinstance(message, GroupDone):
                group_from_wire(message.header, frames)
        except WireError:
            num_refused += 1
    assert num_refused > 5_000


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"ARL\x01" + msgspec.msgpack.encode(Note("x")), "schema version 01"),
        (b"HTTP/1.1 200 OK", "magic"),
        (b"", "magic"),
        (MAGIC + msgspec.msgpack.encode({"type": "Nothing"}), "schema"),
        (MAGIC + msgspec.msgpack.encode({"type": "Note", "text": 3}), "schema"),
        (MAGIC + msgspec.msgpack.encode({"type": "Note", "text": "x", "more": 1}), "schema"),
        (MAGIC + msgspec.msgpack.encode({"type": "Note"}), "schema"),
        (MAGIC + b"\x82\xa4type\xa4Note\xa4text\xa2\xff\xfe", "schema"),  # not UTF-8
        (MAGIC + b"\x82\xa4type\xa9JoinGroup\xa9init_info\x81\xa1a" + b"\x91" * 100_000 + b"\x01", "schema"),  # deep
        (MAGIC + b"\x82\xa4type\xa7Members\xa7members\xdd\x0f\xff\xff\xff", "schema"),  # claims 2^28 members
    ],
)
def test_a_message_that_does_not_fit_is_refused_with_the_reason(header, reason):
    with pytest.raises(WireError, match=reason):
        decode([header])


def test_an_empty_multipart_is_refused():
    with pytest.raises(WireError, match="empty"):
        decode([])


def test_a_header_over_the_limit_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(wire, "MAX_HEADER_BYTES", 100)
    with pytest.raises(WireError, match="over the limit of 100"):
        decode(encode(Note("x" * 200)))


@pytest.mark.parametrize("position", range(4))
@pytest.mark.parametrize("change", [lambda frame: frame[:-1], lambda frame: frame + b"\0\0\0\0", lambda frame: b""])
def test_a_frame_whose_size_disagrees_with_the_header_is_refused(position, change):
    header, frames = group_to_wire(make_group(5))
    received = [bytes(frame) for frame in frames]
    received[position] = change(received[position])
    with pytest.raises(WireError, match="group 5: a frame of"):
        group_from_wire(header, received)


@pytest.mark.parametrize(
    ("sizes", "num_ids", "reason"),
    [
        ([2, 1, 1], 3, "a frame of 12 bytes instead of 16"),
        ([2, 1, 1], 5, "a frame of 20 bytes instead of 16"),
        ([], 4, "a frame of 16 bytes instead of 0"),
        ([2, 2], 4, "support sizes of 8 bytes instead of 12"),
        ([2, 0, 2], 4, "not every sampled token"),
        ([5, 1, -2], 4, "not every sampled token"),
    ],
)
def test_a_group_is_refused_whose_tokens_lack_those_that_they_were_sampled_from(sizes, num_ids, reason):
    header, frames = group_to_wire(make_group(5))
    supports = [np.zeros(num_ids, "<i4").tobytes(), np.asarray(sizes, "<i4").tobytes()]
    with pytest.raises(WireError, match=f"group 5: {reason}"):
        group_from_wire(header, [*frames[:4], *supports])


def test_an_environments_token_is_refused_with_tokens_that_it_was_sampled_from():
    header, frames = group_to_wire(make_group(5, rewards=(1.0, 0.0, 1.0)))
    header = msgspec.structs.replace(header, spans=[[1], [2], [1, 1, 1]])
    for environments in (0, 1):
        sizes = np.asarray([1, 1, 1, 1, environments, 1], "<i4")
        received = [*frames[:4], np.zeros(sizes.sum(), "<i4").tobytes(), sizes.tobytes()]
        if environments:
            with pytest.raises(WireError, match="not every sampled token, and no other"):
                check_group(header, received)
        else:
            check_group(header, received)


@pytest.mark.parametrize("num_frames", [0, 5, 7])
def test_a_group_with_too_few_or_too_many_frames_is_refused(num_frames):
    header, frames = group_to_wire(make_group(5))
    with pytest.raises(WireError, match=f"{num_frames} frames instead of 6"):
        check_group(header, ([*frames, b""])[:num_frames])


@pytest.mark.parametrize(
    "changes",
    [
        {"rewards": [1.0]},
        {"correct": []},
        {"term_scores": {"math": [1.0, 0.5], "style": [1.0]}},
        {"lengths": [1, 2, 3]},
        {"lengths": [0, 3]},
        {"lengths": [-1, 4]},
        {"num_prompt_tokens": 0},
        {"lengths": [], "rewards": [], "correct": [], "truncated": []},
        {"spans": [[1]]},  # of one of two completions
        {"spans": [[1], [1, 1]]},  # ends with the environment's
        {"spans": [[1], []]},
        {"spans": [[1], [1, -1, 2]]},
        {"spans": [[1], [1, 0, 1]]},
        {"spans": [[1], [3]]},
        {"spans": [[1], [1, 1, 1]]},
        {"turn_rewards": [[1.0]]},
        {"turn_rewards": [[1.0], [0.5, 0.5]]},
        {"turn_rewards": [[1.0], []]},
    ],
)
def test_a_header_that_contradicts_itself_is_refused(changes):
    header, frames = group_to_wire(make_group(5))
    with pytest.raises(WireError, match="group 5"):
        check_group(msgspec.structs.replace(header, **changes), frames)
