"""What `check` says would fit fits by its own estimate, and the fewest settings are said."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import pytest

from asyncrl.cluster.machine import host_bytes
from asyncrl.cluster.memory_advice import (
    learner_notes,
    rank_bytes,
    ways_to_fit,
    with_fitting_micro_batch,
)
from asyncrl.cluster.topology import Node, Topology, nodes_that_fit, plan
from asyncrl.config.load import load
from asyncrl.config.model_shape import ModelShape, read_model_shape
from asyncrl.config.schema import Config
from asyncrl.simulate.accelerators import TINY_SHAPE

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


@pytest.mark.parametrize("num_learners", [4, 8])
@pytest.mark.parametrize("device", ["gpu", "cpu"])
def test_without_a_number_of_tokens_a_micro_batch_has_as_many_as_fit_and_one_more_would_not(
    num_learners: int, device: Literal["cpu", "gpu"]
) -> None:
    config = with_settings(num_learners, "learner.micro_batch_tokens=null", "learner.batch_size=100_000")
    topology = plan(config, nodes_that_fit(config) if device == "gpu" else [Node(2, 0)], device)
    room = 0.75 * GPU_BYTES if device == "gpu" else 0.9 * host_bytes() / len(topology.placements)
    fitting, notes = with_fitting_micro_batch(config, TINY_SHAPE, topology, GPU_BYTES)
    num_tokens = fitting.learner.known_micro_batch_tokens
    assert notes == [f"learner.micro_batch_tokens=null: {num_tokens:,} by the estimate of a rank's memory"]
    assert rank_bytes(fitting, TINY_SHAPE, topology, GPU_BYTES) <= room
    fitting.learner.micro_batch_tokens = num_tokens + 1
    assert rank_bytes(fitting, TINY_SHAPE, topology, GPU_BYTES) > room


def test_a_micro_batch_holds_the_longest_sequence_though_it_does_not_fit_and_no_more_than_a_ranks_share(
    shape: ModelShape,
) -> None:
    settings = "learner.micro_batch_tokens=null", "data.max_prompt_tokens=100", "generator.max_tokens=400"
    config = with_settings(4, *settings, "learner.batch_size=6", "algorithm.group_size=4")
    topology = topology_of(config)
    for gpu_bytes, num_tokens in ((10**9, 500), (10**15, 6 * 500)):
        fitting, _ = with_fitting_micro_batch(config, shape, topology, gpu_bytes)
        assert fitting.learner.micro_batch_tokens == num_tokens
        assert ("needs about" in learner_notes(fitting, shape, topology, gpu_bytes)[0]) == (gpu_bytes == 10**9)
    given = with_settings(4, "learner.micro_batch_tokens=7")
    assert with_fitting_micro_batch(given, shape, topology, 10**9) == (given, [])


def test_where_memory_is_left_it_is_said_what_the_ranks_could_keep_and_that_fits(shape: ModelShape) -> None:
    kept = []
    for num_learners in (4, 8, 64):
        config = with_settings(num_learners, "learner.gradient_checkpointing=true")
        topology = topology_of(config)
        notes = learner_notes(config, shape, topology, GPU_BYTES)
        for value in ("gradients", "all"):
            keeping = dataclasses.replace(config, learner=dataclasses.replace(config.learner, keep_gathered=value))
            fits = rank_bytes(keeping, shape, topology, GPU_BYTES) <= 0.75 * GPU_BYTES
            if any(f"learner.keep_gathered={value}:" in note for note in notes):
                assert fits
                kept.append(value)
            assert learner_notes(keeping, shape, topology, GPU_BYTES) == [] or not fits
        assert fits == (kept[-1:] == ["all"])
    assert kept


def test_a_shared_gpu_has_for_a_learner_what_the_generator_leaves_and_a_node_its_own_processes(
    shape: ModelShape,
) -> None:
    null = "learner.micro_batch_tokens=null"
    tokens = {}
    for utilization in (0.3, 0.6):
        config = with_settings(1, null, "cluster.share_gpu=true", f"generator.gpu_memory_utilization={utilization}")
        fitting, _ = with_fitting_micro_batch(config, TINY_SHAPE, plan(config, [Node(8, 1)], "gpu"), 10**9)
        tokens[utilization] = fitting.learner.known_micro_batch_tokens
    assert tokens[0.6] < tokens[0.3]
    config = with_settings(4, null, "learner.batch_size=100_000")
    alone, spread = (plan(config, [Node(2, 0)] * num_nodes, "cpu") for num_nodes in (1, 4))
    one, four = (
        with_fitting_micro_batch(config, TINY_SHAPE, each, GPU_BYTES)[0].learner.known_micro_batch_tokens
        for each in (alone, spread)
    )
    assert four > 1.5 * one
