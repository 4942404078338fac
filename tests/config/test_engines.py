"""`generator.engine` for all generators, or for each in turn."""

from __future__ import annotations

import pytest

from asyncrl.cluster.topology import Node, plan
from asyncrl.config.checks.publish import publish_problems
from asyncrl.config.engines import engine_labels, engine_names, engine_of
from asyncrl.config.schema import Config, GeneratorConfig


def test_generators_take_the_engines_in_turn_also_those_that_join_later():
    generator = GeneratorConfig(engine="vllm, sglang")
    assert engine_names(generator) == ["vllm", "sglang"]
    assert [engine_of(generator, f"generator-{k}") for k in range(4)] == ["vllm", "sglang", "vllm", "sglang"]
    assert engine_of(GeneratorConfig(), "generator-7") == "vllm"


def test_metrics_tell_engines_apart_only_where_there_are_several():
    assert engine_labels(GeneratorConfig(engine="vllm,vllm")) == []
    assert engine_labels(GeneratorConfig(engine="vllm,my/engines.py:Fast")) == ["Fast", "vllm"]


@pytest.mark.parametrize("travels", ["sliced", "delta", "adapter"])
def test_two_engines_receive_everything_and_keys_that_say_otherwise_are_refused(travels: str):
    config = Config()
    config.generator.engine = "vllm,sglang"
    assert publish_problems(config, "cpu") == []
    assert plan(config, [Node(4, 0)], "cpu").publish_engine == "broadcast"
    config.publish.engine = travels
    assert any("set publish.engine=broadcast" in problem for problem in publish_problems(config, "cpu"))
    config.generator.engine = "sglang"
    assert publish_problems(config, "cpu") == []
