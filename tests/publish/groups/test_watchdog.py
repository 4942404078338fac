from __future__ import annotations

import threading

import pytest

from asyncrl.publish.groups.watchdog import Watchdog


def test_a_call_that_never_returns_is_freed_and_says_how_long_it_was_waited_for() -> None:
    freed = threading.Event()
    watchdog = Watchdog(0.2, freed.set)
    with pytest.raises(RuntimeError, match=r"no progress for 0 s \(publish\.timeout_s\)"), watchdog.guard():
        assert freed.wait(10)


def test_the_error_of_a_freed_call_is_told_as_its_deadline() -> None:
    freed = threading.Event()
    watchdog = Watchdog(0.1, freed.set)

    def blocked() -> None:
        freed.wait(10)
        raise RuntimeError("the communicator was aborted")

    with pytest.raises(RuntimeError, match="no progress") as caught, watchdog.guard():
        blocked()
    assert str(caught.value.__cause__) == "the communicator was aborted"


def test_calls_in_time_have_each_the_whole_limit() -> None:
    freed = threading.Event()
    watchdog = Watchdog(1.0, freed.set)
    for _ in range(12):
        with watchdog.guard():
            assert not freed.wait(0.1)
    assert not freed.wait(1.2)  # nor is a limit running between two calls
    watchdog.abort("done")


def test_what_an_aborted_communicator_returned_is_not_taken_for_a_result() -> None:
    num_aborts: list[int] = []
    watchdog = Watchdog(10, lambda: num_aborts.append(1))
    with pytest.raises(RuntimeError, match="the publish group was left"), watchdog.guard():
        watchdog.abort("the publish group was left")
    watchdog.abort("again")
    with pytest.raises(RuntimeError, match="the publish group was left"), watchdog.guard():
        pytest.fail("a call into an aborted communicator")
    assert num_aborts == [1]


def test_an_error_of_its_own_goes_through() -> None:
    watchdog = Watchdog(10, lambda: None)
    with pytest.raises(RuntimeError, match=r"^ncclInvalidArgument$"), watchdog.guard():
        raise RuntimeError("ncclInvalidArgument")
    watchdog.abort("done")
