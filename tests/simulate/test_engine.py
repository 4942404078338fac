"""The simulated engine against token counts and times computed another way."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncrl.simulate.engine import SampledGroup, SimulatedEngine
from tests.simulate.settings import TIMINGS

lengths = st.lists(st.integers(1, 40), min_size=1, max_size=6)


def run_dry(engine: SimulatedEngine) -> list[tuple[float, SampledGroup]]:
    ended = []
    while (time_s := engine.next_event_s()) < math.inf:
        ended += [(time_s, group) for group in engine.advance(time_s)]
    return ended


@given(lengths)
def test_a_group_takes_the_time_of_its_decode_steps_one_by_one(lengths: list[int]) -> None:
    engine = SimulatedEngine(TIMINGS, now_s=0.0, version=0)
    engine.submit(7, 10, lengths)
    [(time_s, group)] = run_dry(engine)
    steps = [sum(length > position for length in lengths) for position in range(max(lengths))]
    expected_s = 10 * TIMINGS.prefill_per_token_s + sum(
        TIMINGS.decode_base_s + TIMINGS.decode_per_sequence_s * num_running for num_running in steps
    )
    assert time_s == pytest.approx(expected_s)
    assert group == SampledGroup(7, {0: sum(lengths)})


@given(lengths, st.integers(1, 3))
def test_no_more_sequences_run_than_there_is_room_for(lengths: list[int], max_sequences: int) -> None:
    """First come, first served, to the end of each: list scheduling on `max_sequences` places, counted in steps."""
    engine = SimulatedEngine(
        replace(TIMINGS, max_sequences=max_sequences, decode_per_sequence_s=0.0, prefill_per_token_s=0.0), 0.0, 0
    )
    engine.submit(0, 10, lengths)
    [(time_s, _)] = run_dry(engine)
    free_at = [0] * max_sequences
    for length in lengths:
        place = free_at.index(min(free_at))
        free_at[place] += length
    assert time_s == pytest.approx(max(free_at) * TIMINGS.decode_base_s)


@given(
    st.lists(st.tuples(st.floats(0.01, 2.0), lengths, st.booleans(), st.floats(0, 1)), min_size=1, max_size=8),
    st.integers(1, 8),
)
def test_every_token_is_sampled_once_and_by_a_version_that_was_served(
    events: list[tuple[float, list[int], bool, float]], max_sequences: int
) -> None:
    engine, now_s, version, groups = SimulatedEngine(replace(TIMINGS, max_sequences=max_sequences), 0.0, 0), 0.0, 0, []
    submitted: dict[int, tuple[int, int]] = {}
    for lease_id, (pause_s, group_lengths, switches, delay_steps) in enumerate(events):
        now_s += pause_s
        groups += engine.advance(now_s)
        if switches:
            version += 1
            engine.switch(version, stall_s=0.05)
        submitted[lease_id] = (sum(group_lengths), version)
        engine.submit(lease_id, 10, group_lengths, delay_steps)
    groups += [group for _, group in run_dry(engine)]
    assert {group.lease_id: group.num_tokens for group in groups} == {
        lease_id: num_tokens for lease_id, (num_tokens, _) in submitted.items()
    }
    for group in groups:
        assert submitted[group.lease_id][1] <= group.first_version
        assert max(group.tokens_by_version) <= version


@given(st.integers(1, 40), st.floats(0, 1))
def test_a_group_waits_for_the_next_decode_step_unless_the_engine_is_empty(length: int, delay_steps: float) -> None:
    engine = SimulatedEngine(replace(TIMINGS, decode_per_sequence_s=0.0, prefill_per_token_s=0.0), 0.0, 0)
    engine.submit(0, 10, [length], delay_steps)
    engine.submit(1, 10, [length], delay_steps)
    ends_s = {group.lease_id: time_s for time_s, group in run_dry(engine)}
    assert ends_s[0] == pytest.approx(length * TIMINGS.decode_base_s)
    assert ends_s[1] == pytest.approx((length + delay_steps) * TIMINGS.decode_base_s)


def test_tokens_after_a_switch_are_of_the_new_version_and_late_by_the_stall() -> None:
    engine = SimulatedEngine(replace(TIMINGS, prefill_per_token_s=0.0), 0.0, version=3)
    engine.submit(0, 10, [10])
    step_s = TIMINGS.decode_base_s + TIMINGS.decode_per_sequence_s
    assert engine.advance(4.5 * step_s) == []
    engine.switch(4, stall_s=1.0)
    [(time_s, group)] = run_dry(engine)
    assert time_s == pytest.approx(10 * step_s + 1.0)
    assert group.tokens_by_version == {3: 4, 4: 6}
