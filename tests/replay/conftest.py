"""A real ReplayServer in a thread."""

from collections.abc import Iterator

import pytest

from asyncrl.config.schema import Config
from tests.support.replay import Served, serving, small_config


@pytest.fixture
def config() -> Config:
    return small_config()


@pytest.fixture
def served(config: Config) -> Iterator[Served]:
    with serving(config) as running:
        yield running
