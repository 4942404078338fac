"""Errors cross process borders: from a role to the launcher."""

import pickle

import pytest

from asyncrl import errors
from asyncrl.errors import AsyncrlError, DeadlineError

CLASSES = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, AsyncrlError)]


@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_says_the_same_on_the_other_side_of_a_pickle(kind):
    error = kind("a batch", 3.0, "replay") if kind is DeadlineError else kind("what happened")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert str(copy) == str(error)


def test_a_deadline_names_what_how_long_and_who():
    expected = "waited 3 s for a batch; replay should have come and did not"
    assert str(DeadlineError("a batch", 3.0, "replay")) == expected
