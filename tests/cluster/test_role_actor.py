"""What a role's error is when it has come to the launcher."""

from __future__ import annotations

import threading

import pytest

from asyncrl.cluster.role_actor import can_travel
from asyncrl.errors import DeadlineError


class HoldsALock(Exception):
    def __init__(self) -> None:
        super().__init__("max_num_seqs is too large", threading.Lock())


class NeedsMore(Exception):
    """Is pickled, but cannot be made anew from its arguments."""

    def __init__(self, key: str, value: int) -> None:
        super().__init__(f"{key} is {value}")


@pytest.mark.parametrize(
    ("error", "travels"),
    [
        (ValueError("no"), True),
        (DeadlineError("a batch", 5.0, "replay"), True),
        (HoldsALock(), False),
        (NeedsMore("key", 3), False),
    ],
)
def test_only_an_error_that_can_be_pickled_and_read_travels_as_it_is(error: Exception, travels: bool) -> None:
    assert can_travel(error) is travels
