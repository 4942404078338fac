"""The checks of hardware that is not here: what processes would say there is scripted."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import pytest

from asyncrl import devices as accelerators
from asyncrl.cluster.memory import Estimate, Item
from asyncrl.config.load import load
from asyncrl.devices import Accelerator
from asyncrl.errors import PublishError, SelftestError
from asyncrl.selftest.agreement import FLOAT32, tolerance_of
from asyncrl.selftest.checks.engine import deaths, kernels, memory
from asyncrl.selftest.checks.system import devices, links, stall, versions
from asyncrl.selftest.process import Machine, Memory
from asyncrl.selftest.system import System

H100 = Accelerator("NVIDIA H100 80GB HBM3", 80 * 10**9)
GPU_NODE = Machine({"toolkit": "CUDA 13.0", "driver": "580.65", "vllm": "0.32.0"}, 64, [H100], None)


class ScriptedPart:
    """Answers each method with what its script says."""

    def __init__(self, name: str, **answers: Any) -> None:
        self.name = name
        self.answers = answers

    def call(self, method: str, *args: Any) -> Future[Any]:
        outcome: Future[Any] = Future()
        answer = self.answers[method]
        if isinstance(answer, Exception):
            outcome.set_exception(answer)
        else:
            outcome.set_result(answer)
        return outcome


def system_of(learner: ScriptedPart, generator: ScriptedPart, device: str = "gpu", **changes: Any) -> System:
    config = load(None, ["model.path=x", "model.dtype=bfloat16", "data.train=none", f"cluster.device={device}"])
    config = replace(config, publish=replace(config.publish, engine="sliced", transport="gloo"))
    return System(config, [learner], [generator], 1.0, 2, 10, [0], 16, str, lambda: "file", **changes)


def machines(one: Machine, other: Machine) -> System:
    return system_of(ScriptedPart("learner-0", machine=one), ScriptedPart("generator-0", machine=other))


def test_versions_that_differ_between_nodes_are_named():
    other = replace(GPU_NODE, versions={**GPU_NODE.versions, "vllm": "0.31.0"})
    with pytest.raises(
        SelftestError, match=r"vllm is 0\.32\.0 where learner-0 runs and 0\.31\.0 where generator-0 runs"
    ):
        versions.run(machines(GPU_NODE, other))
    assert versions.run(machines(GPU_NODE, GPU_NODE)) == GPU_NODE.versions


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"accelerators": []}, r"placed on a GPU and torch \(CUDA 13\.0\) sees none"),
        ({"accelerators": [H100, Accelerator("NVIDIA A100", 40 * 10**9)]}, "devices of several kinds"),
        (
            {"versions": {"toolkit": "CUDA 13.0", "driver": "570.1"}},
            r"CUDA 13\.0, which needs NVIDIA's driver 580 or later; here is 570\.1",
        ),
        ({"versions": {"toolkit": "CUDA 13.0"}}, "NVIDIA's driver is not loaded"),
    ],
)
def test_devices_that_cannot_run_what_is_installed_are_named(change, message):
    with pytest.raises(SelftestError, match=message):
        devices.run(machines(GPU_NODE, replace(GPU_NODE, **change)))


def test_devices_of_another_maker_are_named_and_not_used():
    machine = replace(GPU_NODE, unsupported="CANN (Ascend)")
    assert devices.run(machines(machine, machine))["unused"] == "CANN (Ascend)"


@pytest.mark.parametrize(
    ("toolkit", "driver", "is_well"),
    [
        ("CUDA 12.8", "525.60.13", True),
        ("CUDA 12.8", "520.61", False),
        ("CUDA 13.0", "580.65.06", True),
        ("CUDA 14.0", "600.1", True),
        ("CPU", None, True),
        ("ROCm 6.4", None, True),
    ],
)
def test_a_driver_is_compared_with_what_torch_was_built_for(toolkit, driver, is_well):
    assert (accelerators.driver_problem(toolkit, driver) is None) == is_well


def test_eager_attention_on_a_gpu_is_refused():
    learner = ScriptedPart("learner-0", kernels={"attention": "eager", "dtype": "bfloat16"})
    generator = ScriptedPart("generator-0", kernels={"attention": "FlashAttention", "sampling": "FlashInfer"})
    with pytest.raises(SelftestError, match="eager"):
        kernels.run(system_of(learner, generator))


def test_a_link_that_is_ten_times_slower_than_another_is_named(monkeypatch):
    generator = ScriptedPart("generator-0")
    system = system_of(ScriptedPart("learner-0"), generator)
    system.learners.append(ScriptedPart("learner-1"))
    speeds = {"generator-0": 1e9, "learner-1": 40e9}
    monkeypatch.setattr(links, "bytes_per_s", lambda system, one, other: speeds[other.name])
    with pytest.raises(
        SelftestError, match=r"learner-0 → generator-0 carries 1 GB/s and learner-0 → learner-1 40 GB/s"
    ):
        links.run(system)


def test_memory_beyond_the_prediction_is_told_with_both_figures():
    learner = ScriptedPart("learner-0", memory=Memory(0, 70 * 10**9))
    generator = ScriptedPart("generator-0", memory=Memory(10**9, 0))
    predicted = [
        Estimate("a learner rank", [Item("weights", 52e9, "4·P")], on_gpu=True),
        Estimate("a generator worker", [Item("staged", 1e9, "c·P")]),
    ]
    with pytest.raises(SelftestError, match=r"learner-0 held 70\.00 GB of device memory, and 52\.00 GB were predicted"):
        memory.run(system_of(learner, generator, estimates=predicted))
    learner.answers["memory"] = Memory(0, 60 * 10**9)
    figures = memory.run(system_of(learner, generator, estimates=predicted))
    assert figures["learner-0 device reached_GB"] == 60
    assert figures["generator-0 host predicted_GB"] == 1


def test_a_staged_publish_that_stands_still_is_told(monkeypatch):
    system = system_of(ScriptedPart("learner-0"), ScriptedPart("generator-0"))
    published = {"time/publish_s": 4.0, "time/publish_stall_s": 3.9, "publish/bytes": 1.0}
    monkeypatch.setattr(system, "publish", lambda **_: published)
    monkeypatch.setattr(system, "generators", [])
    with pytest.raises(SelftestError, match=r"stood still for 3\.90 s of a staged publish of 4\.00 s"):
        stall.run(system)


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ({"time/publish_s": 1.0}, "was killed, and the next publish succeeded"),
        (PublishError("generator-7 did not answer"), "the error names another: generator-7"),
    ],
)
def test_a_death_that_is_not_noticed_or_blamed_on_another_is_told(monkeypatch, sent, message):
    learner = ScriptedPart("learner-0", join=None, gather=None, send={})
    victim = ScriptedPart("generator-0", die=None)
    system = system_of(learner, victim, start_again=lambda name: victim)
    system.members = {"generator-0": None}  # type: ignore[dict-item]
    publish = system.publish

    def then(**arguments: Any) -> dict[str, float]:
        figures = publish(**arguments)
        learner.answers["send"] = sent
        return figures

    monkeypatch.setattr(system, "publish", then)
    with pytest.raises(SelftestError, match=message):
        deaths.run(system)


def test_an_engine_that_does_not_say_that_it_is_dead_is_told(monkeypatch):
    monkeypatch.setattr(deaths, "LONGEST_WAIT_S", 0.3)
    victim = ScriptedPart("generator-0", die=None, is_dead=False)
    system = system_of(ScriptedPart("learner-0"), victim, start_again=lambda name: victim)
    published = iter([{}, PublishError("generator-0 did not answer")])

    def publish(**arguments: Any) -> dict[str, float]:
        outcome = next(published)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(system, "publish", publish)
    with pytest.raises(SelftestError, match="a worker was killed, and 0 s later `dead` is false"):
        deaths.run(system)


def test_bfloat16_may_differ_by_more_with_more_layers_and_at_lower_temperatures_and_float32_may_not() -> None:
    system = machines(GPU_NODE, GPU_NODE)
    assert tolerance_of(system, 1.0) == pytest.approx((0.03, 1.2))
    system.num_layers = 30
    assert tolerance_of(system, 1.0) == pytest.approx((0.17, 4.0))  # SmolLM2-135M: 0.11 and 1.1
    assert tolerance_of(system, 0.5) == pytest.approx((0.34, 8.0))
    assert tolerance_of(system, 1.5) == tolerance_of(system, 1.0)
    system.config = replace(system.config, model=replace(system.config.model, dtype="float32"))
    assert tolerance_of(system, 0.5) == FLOAT32
