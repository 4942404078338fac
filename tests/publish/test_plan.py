"""The parts of a publish that need no engine: slices, buckets, checksums."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asyncrl.publish.checksum import BLOCK_WORDS, checksum, word_sum
from asyncrl.publish.delta import decode, encode
from asyncrl.publish.plan import (
    Piece,
    Region,
    Slice,
    buckets,
    cut,
    joined,
    own_pieces,
    pack,
    place_alone,
    total_bytes,
    two_buffers,
    unpack,
    whole_pieces,
)

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.int64]


@st.composite
def matrix_parts(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix and a rectangle of it: what column and row parallel layers keep."""
    rows, columns = draw(st.integers(1, 8)), draw(st.integers(1, 8))
    top, left = draw(st.integers(0, rows - 1)), draw(st.integers(0, columns - 1))
    bottom, right = draw(st.integers(top + 1, rows)), draw(st.integers(left + 1, columns))
    matrix = torch.arange(rows * columns).view(rows, columns).to(draw(st.sampled_from(DTYPES)))
    return matrix, matrix[top:bottom, left:right]


@given(st.lists(matrix_parts(), min_size=1, max_size=6), st.integers(1, 300))
def test_packed_slices_come_out_as_the_parts_they_were_cut_from(
    parts: list[tuple[torch.Tensor, torch.Tensor]], bucket_bytes: int
) -> None:
    tensors = {f"tensor-{k}": matrix for k, (matrix, _) in enumerate(parts)}
    slices = [
        Slice(name, Region.of(part), "anything", Region.of(part))
        for name, (_, part) in zip(tensors, parts, strict=True)
    ]
    pieces = own_pieces(slices, tensors)
    filled = buckets(pieces, bucket_bytes)
    memory = two_buffers(filled, CPU)
    received = {}
    for bucket in filled:
        sent = [piece.region.view(tensors[piece.name]) for piece in bucket]
        received |= {piece.name: part for piece, part in unpack(bucket, pack(bucket, sent, next(memory)).clone())}
    assert received.keys() == tensors.keys()
    for name, (_, part) in zip(tensors, parts, strict=True):
        assert torch.equal(part, received[name])


@given(st.lists(st.integers(1, 400), min_size=1, max_size=12), st.integers(8, 300))
def test_small_pieces_share_buckets_and_come_before_large_ones_which_travel_alone(
    lengths: list[int], bucket_bytes: int
) -> None:
    pieces = whole_pieces({f"tensor-{k}": torch.empty(n, device="meta") for k, n in enumerate(lengths)})
    filled = buckets(pieces, bucket_bytes)
    small, large = ([p for p in pieces if (p.num_bytes >= bucket_bytes) is big] for big in (False, True))
    assert [piece for bucket in filled for piece in bucket] == [*small, *large]
    assert filled[len(filled) - len(large) :] == [[piece] for piece in large]
    assert all(total_bytes(bucket[:-1]) < bucket_bytes for bucket in filled)


@given(matrix_parts())
def test_a_piece_that_lies_in_one_run_is_its_own_bucket_without_a_copy(
    parts: tuple[torch.Tensor, torch.Tensor],
) -> None:
    _, part = parts
    piece = Piece("matrix", Region.of(part), str(part.dtype).removeprefix("torch."))
    alone = place_alone([piece], part, CPU)
    if part.is_contiguous() and part.nbytes % 8 == 0:
        assert alone is not None
        assert alone.data_ptr() == part.data_ptr()
        assert torch.equal(alone, pack([piece], [part], torch.empty(piece.num_bytes, dtype=torch.uint8)))
    else:
        assert alone is None
    other = Piece("matrix", Region.of(part), "float16")
    assert place_alone([other], part, CPU) is None


def test_a_part_that_two_parameters_keep_travels_once() -> None:
    row = Region(0, (4,), (1,))
    slices = [Slice("embedding", row, parameter, row) for parameter in ("embedding", "head")]
    assert own_pieces(slices, {"embedding": torch.zeros(4)}) == [Piece("embedding", row, "float32")]


@given(matrix_parts(), st.integers(1, 200))
def test_cut_slices_copy_the_same_elements_in_parts_no_longer_than_they_may_be(
    parts: tuple[torch.Tensor, torch.Tensor], max_bytes: int
) -> None:
    matrix, part = parts
    copied = torch.full_like(part, -1, memory_format=torch.contiguous_format)
    whole = Slice("matrix", Region.of(part), "parameter", Region.whole(tuple(part.shape)))
    row_bytes = part.shape[1] * part.element_size()
    slices = cut([whole], {"matrix": matrix}, max_bytes)
    for one in slices:
        one.target.view(copied).copy_(one.source.view(matrix))
        assert one.source.num_elements * part.element_size() <= max(max_bytes, row_bytes)
    assert torch.equal(copied, part)
    assert sum(one.source.num_elements for one in slices) == part.numel()


def test_a_scalar_is_not_cut() -> None:
    scalar = Slice("scale", Region(0, (), ()), "scale", Region(0, (), ()))
    assert cut([scalar], {"scale": torch.tensor(1.0)}, 1) == [scalar]


def test_whole_pieces_are_read_off_meta_tensors() -> None:
    metas = {"weight": torch.empty(3, 5, dtype=torch.bfloat16, device="meta")}
    assert whole_pieces(metas) == [Piece("weight", Region(0, (3, 5), (5, 1)), "bfloat16")]
    assert total_bytes(whole_pieces(metas)) == 32


@given(matrix_parts())
def test_a_word_sum_does_not_depend_on_how_a_tensor_lies_in_memory_and_shows_a_change(
    parts: tuple[torch.Tensor, torch.Tensor],
) -> None:
    _, part = parts
    expected = word_sum(part)
    assert word_sum(part.contiguous()) == expected
    shifted = torch.empty(part.numel() + 1, dtype=part.dtype)[1:].view(part.shape).copy_(part)
    assert word_sum(shifted) == expected
    if part.numel():
        shifted.view(-1)[-1] += 1
        assert word_sum(shifted) != expected


@pytest.mark.parametrize("shape", [(6,), (6, 8), (6, 3), (2, 3, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_word_sum_shows_rows_that_have_changed_places(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensor = torch.arange(math.prod(shape)).to(dtype).view(shape)
    sums = {word_sum(tensor.roll(k, dims=max(len(shape) - 2, 0))) for k in range(shape[max(len(shape) - 2, 0)])}
    assert len(sums) == shape[max(len(shape) - 2, 0)]


@pytest.mark.parametrize("num_bytes", [1, 7, 8, 8 * BLOCK_WORDS - 1, 8 * BLOCK_WORDS, 8 * BLOCK_WORDS * 3 + 13])
def test_every_flipped_bit_changes_the_checksum(num_bytes: int) -> None:
    buffer = torch.randint(0, 256, (num_bytes,), dtype=torch.uint8)
    whole = checksum(buffer)
    for k in range(200):
        position = math.floor(k / 200 * num_bytes)
        buffer[position] ^= 1 << k % 8
        assert checksum(buffer) != whole
        buffer[position] ^= 1 << k % 8
    assert checksum(buffer) == whole


def test_blocks_that_change_places_change_the_checksum() -> None:
    buffer = torch.randint(0, 256, (8 * BLOCK_WORDS * 4,), dtype=torch.uint8)
    moved = buffer.view(4, -1)[[1, 0, 2, 3]].reshape(-1)
    assert checksum(moved) != checksum(buffer)


@st.composite
def buffer_pairs(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """Two versions of a bucket; what changed lies anywhere and may be far apart."""
    num_words = draw(st.integers(1, 2000))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    old = torch.randint(-(2**15), 2**15, (num_words,), dtype=torch.int16, generator=generator)
    new = old.clone()
    positions = draw(st.lists(st.integers(0, num_words - 1), max_size=20))
    for position in positions:
        new[position] = draw(st.integers(-(2**15), 2**15 - 1))
    return old.view(torch.uint8), new.view(torch.uint8)


@given(buffer_pairs())
def test_a_delta_makes_the_new_bytes_of_the_old_ones_exactly(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    old, new = pair
    encoded = encode(old, new)
    decode(encoded, old)
    assert torch.equal(old, new)


def test_a_step_that_moves_one_bfloat16_weight_in_a_hundred_takes_a_sixtieth_of_the_bytes() -> None:
    generator = torch.Generator().manual_seed(0)
    old = (0.02 * torch.randn(1 << 20, generator=generator)).bfloat16()
    words = old.clone().view(torch.int16)
    moved = torch.rand(1 << 20, generator=generator) < 0.01
    words += moved * (1 - 2 * torch.randint(0, 2, (1 << 20,), generator=generator, dtype=torch.int16))
    assert 60 * encode(old.view(torch.uint8), words.view(torch.uint8)).numel() < words.nbytes


@given(buffer_pairs(), st.integers(0, 10_000), st.integers(1, 255))
def test_a_damaged_delta_is_an_error_or_shows_in_the_checksum(
    pair: tuple[torch.Tensor, torch.Tensor], position: int, change: int
) -> None:
    old, new = pair
    encoded = encode(old, new)
    encoded[position % len(encoded)] ^= change
    try:
        decode(encoded, old)
    except ValueError:
        return
    assert torch.equal(old, new) or checksum(old) != checksum(new)


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.sampled_from(["gate", "up", "both"]))
def test_the_experts_of_a_layer_are_one_slice_that_copies_the_same(
    num_experts: int, rows: int, columns: int, loaded: str
) -> None:
    fused = torch.arange(num_experts * 2 * rows * columns).view(num_experts, 2 * rows, columns)
    target = torch.zeros(num_experts, 2 * rows, columns, dtype=torch.int64)
    halves = {"gate": [0], "up": [1], "both": [0, 1]}[loaded]
    slices = [
        Slice(
            "gate_up_proj",
            Region.of(fused[expert].chunk(2)[half]),
            "w13",
            Region.of(target[expert].chunk(2)[1 - half]),  # the kernel wants them the other way round
        )
        for half in halves
        for expert in range(num_experts)
    ]
    whole = joined(slices)
    assert len(whole) == len(halves)
    for one in whole:
        one.target.view(target).copy_(one.source.view(fused))
    for half in halves:
        assert torch.equal(target.chunk(2, dim=1)[1 - half], fused.chunk(2, dim=1)[half])


def test_slices_that_do_not_follow_each_other_evenly_stay_apart() -> None:
    place = Region(0, (2,), (1,))
    moved = [Region(offset, (2,), (1,)) for offset in (4, 10)]
    slices = [Slice("a", place, "w", place), *(Slice("a", one, "w", one) for one in moved)]
    assert joined(slices) == [Slice("a", Region(0, (2, 2), (4, 1)), "w", Region(0, (2, 2), (4, 1))), slices[2]]
    assert joined([slices[0], Slice("b", moved[0], "w", moved[0])]) == [slices[0], Slice("b", moved[0], "w", moved[0])]
    assert joined([slices[0], slices[0]]) == [slices[0], slices[0]]
