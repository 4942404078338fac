"""Real reward processes for the tests of this folder."""

from collections.abc import Iterator

import pytest

from asyncrl.config.schema import RewardTerm
from asyncrl.rewards.pool import RewardPool


@pytest.fixture(scope="module")
def pool() -> Iterator[RewardPool]:
    running = RewardPool([RewardTerm("tests.support.faults.reward_faults:fault")], num_workers=1, time_limit_s=60.0)
    yield running
    running.close()
