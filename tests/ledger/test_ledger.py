import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncrl.errors import RunError
from asyncrl.ledger.ledger import Ledger
from asyncrl.ledger.staleness_bound import admission_limit


def make_ledger(**changes) -> Ledger:
    arguments = {
        "batch_size": 2,
        "max_staleness": 1,
        "num_steps": 10,
        "stragglers": "wait",
        "lease_timeout_s": 10.0,
        "max_attempts": 2,
    }
    return Ledger(**(arguments | changes))


def lease_all(ledger: Ledger, generator: str = "a", now_s: float = 0.0) -> list[tuple[int, int]]:
    """(lease id, index) of every prompt that may be drawn now."""
    leases = []
    while lease := ledger.lease(generator, now_s):
        leases.append((lease.lease_id, lease.index))
    return leases


def test_nothing_is_drawn_before_the_first_publish():
    ledger = make_ledger()
    assert ledger.lease("a", 0.0) is None
    ledger.admission.published(0)
    assert ledger.lease("a", 0.0).index == 0


@given(st.integers(0, 50), st.integers(0, 8), st.integers(1, 64))
def test_the_admission_limit_is_the_most_prompts_whose_lag_stays_within_the_bound(version, max_staleness, batch_size):
    positions = range((version + max_staleness + 3) * batch_size)
    fresh_enough = [position for position in positions if position // batch_size - version <= max_staleness]
    assert admission_limit(version, max_staleness, batch_size) == len(fresh_enough)


def test_with_eta_zero_a_step_is_drawn_only_after_the_publish_of_the_step_before_it():
    ledger = make_ledger(max_staleness=0)
    for version in range(10):
        ledger.admission.published(version)
        leases = lease_all(ledger)
        assert [index for _, index in leases] == [2 * version, 2 * version + 1]
        for lease_id, _ in leases:
            assert ledger.complete(lease_id, 0)
        assert ledger.lease("a", 0.0) is None
        assert ledger.take_batch(version) == [2 * version, 2 * version + 1]
        assert ledger.lease("a", 0.0) is None


@given(st.integers(0, 4))
def test_publishing_after_every_step_or_only_each_eta_plus_first_one_a_run_goes_on_and_less_often_it_stands_still(eta):
    def steps_made(every: int) -> int:
        ledger = make_ledger(max_staleness=eta, num_steps=12)
        ledger.admission.published(0)
        for step in range(1, 13):
            for lease_id, _ in lease_all(ledger):
                ledger.complete(lease_id, 0)
            if ledger.take_batch(step - 1) is None:
                return step - 1
            if step % every == 0:
                ledger.admission.published(step)
        return 12

    assert [steps_made(every) for every in range(1, eta + 3)] == [12] * (eta + 1) + [eta + 1]


def test_an_eta_that_falls_takes_no_prompt_back_and_draws_none_until_the_version_has_caught_up():
    ledger = make_ledger(max_staleness=2)
    ledger.admission.published(0)
    leases = lease_all(ledger)
    assert len(leases) == 6
    ledger.admission.eta = 0
    for lease_id, _ in leases:
        ledger.complete(lease_id, 0)
    drawn = []
    for version in range(1, 4):
        ledger.take_batch(version - 1)
        ledger.admission.published(version)
        drawn.append([index for _, index in lease_all(ledger)])
    assert drawn == [[], [], [6, 7]]


def test_a_lease_that_expires_goes_to_another_generator():
    ledger = make_ledger()
    ledger.admission.published(0)
    first = ledger.lease("a", 0.0)
    assert ledger.expire(9.9) == []
    assert ledger.expire(10.0) == [(first, "retried")]
    second = ledger.lease("b", 10.0)
    assert second.index == first.index
    assert second.lease_id != first.lease_id


def test_a_late_answer_counts_while_its_prompt_is_still_open_and_the_second_answer_does_not():
    ledger = make_ledger()
    ledger.admission.published(0)
    first = ledger.lease("a", 0.0)
    ledger.expire(10.0)
    second = ledger.lease("b", 10.0)
    assert ledger.complete(first.lease_id, 0)
    assert not ledger.complete(second.lease_id, 0)
    assert not ledger.complete(first.lease_id, 0)
    assert ledger.num_queued == 1


def test_a_prompt_whose_late_answer_came_is_not_leased_again():
    ledger = make_ledger()
    ledger.admission.published(0)
    first = ledger.lease("a", 0.0)
    ledger.expire(10.0)
    assert ledger.complete(first.lease_id, 0)
    assert ledger.lease("b", 10.0).index == 1


def test_a_late_failure_of_an_expired_lease_does_not_count_twice():
    ledger = make_ledger()
    ledger.admission.published(0)
    first = ledger.lease("a", 0.0)
    ledger.expire(10.0)
    assert ledger.fail(first.lease_id, "too slow") is None
    assert ledger.quarantined == {}


def test_an_answer_to_a_lease_that_was_never_granted_does_not_count():
    ledger = make_ledger()
    ledger.admission.published(0)
    ledger.lease("a", 0.0)
    assert not ledger.complete(7, 0)
    assert ledger.fail(7, "who?") is None
    assert (ledger.leases.num_held, ledger.num_queued) == (1, 0)


def test_a_prompt_that_fails_max_attempts_times_is_quarantined_with_its_reason_and_replaced():
    ledger = make_ledger(max_staleness=0)
    ledger.admission.published(0)
    lease_all(ledger)
    assert ledger.fail(0, "first") == "retried"
    again = ledger.lease("a", 0.0)
    assert again.index == 0
    assert ledger.fail(again.lease_id, "second") == "quarantined"
    assert ledger.quarantined == {0: "second"}
    replacement = ledger.lease("a", 0.0)
    assert replacement.index == 2
    for lease_id in (1, replacement.lease_id):
        ledger.complete(lease_id, 0)
    assert ledger.take_batch(0) == [1, 2]


def test_a_prompt_whose_leases_expire_max_attempts_times_is_quarantined():
    ledger = make_ledger()
    ledger.admission.published(0)
    ledger.lease("a", 0.0)
    ledger.expire(10.0)
    ledger.lease("b", 10.0)
    assert [outcome for _, outcome in ledger.expire(20.0)] == ["quarantined"]
    assert ledger.quarantined == {0: "b did not answer in time"}


def test_the_leases_of_a_generator_that_is_gone_are_leased_again_without_counting_as_failures():
    ledger = make_ledger(max_attempts=1)
    ledger.admission.published(0)
    for generator in ("a", "b", "a"):
        ledger.lease(generator, 0.0)
    assert [lease.index for lease in ledger.release("a")] == [0, 2]
    assert [ledger.lease("b", 0.0).index for _ in range(2)] == [0, 2]
    assert ledger.quarantined == {}
    assert not ledger.complete(0, 0)


def test_batches_keep_admission_order_and_wait_for_a_straggler():
    ledger = make_ledger()
    ledger.admission.published(0)
    lease_all(ledger)
    for lease_id in (3, 1, 2):
        ledger.complete(lease_id, 0)
    assert ledger.take_batch(0) is None
    assert ledger.missing_for_batch() == [0]
    assert ledger.leases.holder_of(0) == "a"
    ledger.complete(0, 0)
    assert [ledger.take_batch(step) for step in range(2)] == [[0, 1], [2, 3]]


def test_out_of_order_batches_overtake_a_straggler():
    ledger = make_ledger(stragglers="mask")
    ledger.admission.published(0)
    lease_all(ledger)
    for lease_id in (3, 1):
        ledger.complete(lease_id, 0)
    assert ledger.take_batch(0) == [1, 3]
    for lease_id in (2, 0):
        ledger.complete(lease_id, 0)
    assert ledger.take_batch(1) == [0, 2]


def test_a_batch_is_given_again_until_a_checkpoint_contains_it_and_no_step_is_left_out():
    ledger = make_ledger()
    ledger.admission.published(0)
    for lease_id, _ in lease_all(ledger):
        ledger.complete(lease_id, 0)
    batches = [ledger.take_batch(step) for step in range(2)]
    assert [ledger.take_batch(step) for step in range(2)] == batches
    ledger.checkpointed(1)
    assert ledger.take_batch(1) == batches[1]
    with pytest.raises(RunError, match="the batch of step 0 is asked for; kept are 1 to 1, and the next is 2"):
        ledger.take_batch(0)
    with pytest.raises(RunError, match="step 3"):
        ledger.take_batch(3)


def test_a_run_draws_no_more_prompts_than_its_steps_train():
    ledger = make_ledger(num_steps=2, max_staleness=8)
    ledger.admission.published(0)
    leases = lease_all(ledger)
    assert [index for _, index in leases] == [0, 1, 2, 3]
    ledger.complete(0, 0)
    ledger.complete(1, 0)
    ledger.take_batch(0)
    ledger.admission.published(1)
    assert ledger.lease("a", 0.0) is None


def test_versions_that_go_backwards_are_refused():
    ledger = make_ledger()
    ledger.admission.published(3)
    with pytest.raises(RunError, match="version 2 after version 3"):
        ledger.admission.published(2)


def test_a_group_without_a_signal_gives_its_place_to_another_prompt():
    ledger = make_ledger(max_staleness=0, max_refill_prompts=4)
    ledger.admission.published(0)
    (first, _), (second, _) = lease_all(ledger)
    assert ledger.complete(first, 0, rewards_differ=False) == "filtered"
    assert ledger.complete(first, 0) is None
    ((third, index),) = lease_all(ledger)
    assert index == 2
    assert ledger.complete(third, 0) == "queued"
    assert ledger.complete(second, 0) == "queued"
    assert ledger.take_batch(0) == [1, 2]
    assert ledger.num_filtered == 1


@given(st.permutations(range(8)), st.lists(st.booleans(), min_size=21, max_size=21))
def test_at_eta_zero_which_groups_a_batch_has_does_not_depend_on_who_answers_first(order, signals):
    """Refilled or not: with every answer in order of admission, and with the answers in any other order."""

    def batches(priority):
        ledger, taken = make_ledger(max_staleness=0, num_steps=3, max_refill_prompts=5), []
        leases = {}
        for version in range(3):
            ledger.admission.published(version)
            while (batch := ledger.take_batch(version)) is None:
                leases |= {index: lease_id for lease_id, index in lease_all(ledger)}
                index = min(leases, key=lambda index: priority[index % len(priority)])
                ledger.complete(leases.pop(index), 0, signals[index])
            taken.append((batch, ledger.counters["next_index"]))
        return taken

    straight = batches(range(100))
    assert batches(order) == straight
    for step, (batch, next_index) in enumerate(straight):
        first = straight[step - 1][1] if step else 0
        assert all(signals[index] or index >= first + 5 for index in batch)
        assert next_index <= first + 5 + 2


def test_a_straggler_that_was_overtaken_is_sampled_again_when_its_tokens_are_too_old():
    ledger = make_ledger(stragglers="requeue", max_staleness=1, num_steps=4)
    ledger.admission.published(0)
    straggler, *others = [lease_id for lease_id, _ in lease_all(ledger)]
    for lease_id in others[:2]:
        ledger.complete(lease_id, 0)
    assert ledger.take_batch(0) == [1, 2]
    ledger.admission.published(1)
    others = [others[2], *(lease_id for lease_id, _ in lease_all(ledger))]
    for lease_id in others[:2]:
        ledger.complete(lease_id, 0)
    assert ledger.take_batch(1) == [3, 4]
    ledger.complete(straggler, 0)
    ledger.complete(others[2], 1)
    assert ledger.take_batch(2) is None
    assert (ledger.num_requeued, ledger.num_queued) == (1, 1)
    again = ledger.lease("a", 0.0)
    assert again.index == 0
    ledger.complete(again.lease_id, 1)
    assert ledger.take_batch(2) == [0, 5]
