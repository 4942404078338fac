"""What `check` says would fit fits by its own estimate, and the fewest settings are said."""

from __future__ import annotations

from pathlib import Path

import pytest

from asyncrl.cluster.memory_advice import rank_bytes, ways_to_fit
from asyncrl.cluster.topology import Topology, nodes_that_fit, plan
from asyncrl.config.load import load
from asyncrl.config.model_shape import ModelShape, read_model_shape
from asyncrl.config.schema import Config

GPU_BYTES = 80 * 10**9


@pytest.fixture(scope="module")
def shape() -> ModelShape:
    return read_model_shape(str(Path(__file__).parents[1] / "models" / "qwen3_8b"))


def topology_of(config: Config) -> Topology:
    return plan(config, nodes_that_fit(config), "gpu")


def with_settings(num_learners: int, *settings: str) -> Config:
    return load(None, ["model.path=x", "data.train=y", f"learner.count={num_learners}", *settings])


@pytest.mark.parametrize("num_learners", [1, 2, 4, 8])
@pytest.mark.parametrize("micro_batch_tokens", [2048, 65536])
def test_every_way_that_is_said_fits_and_the_first_setting_alone_would_not_where_two_are_said(
    num_learners: int, micro_batch_tokens: int, shape: ModelShape
) -> None:
    tokens = f"learner.micro_batch_tokens={micro_batch_tokens}"
    config = with_settings(num_learners, tokens)
    topology = topology_of(config)
    ways = ways_to_fit(config, shape, topology, GPU_BYTES, GPU_BYTES)
    assert ways  # an adapter on one GPU does
    for way in ways:
        settings = way.split(" with ")
        assert rank_bytes(with_settings(num_learners, tokens, *settings), shape, topology, GPU_BYTES) <= GPU_BYTES
        for setting in settings if len(settings) > 1 else []:
            assert rank_bytes(with_settings(num_learners, tokens, setting), shape, topology, GPU_BYTES) > GPU_BYTES


def test_where_nothing_is_enough_nothing_is_said(shape: ModelShape) -> None:
    config = with_settings(1)
    assert ways_to_fit(config, shape, topology_of(config), 10**9, GPU_BYTES) == []
