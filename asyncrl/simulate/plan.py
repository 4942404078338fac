"""`asyncrl plan`: every way to divide N accelerators that fits their memory, simulated; what is fast, what is fresh.

    splits      generators × tensor parallelism + learners = N        kept when a role's memory fits
    bound       each split alone, simulated at the largest η           kept within KEPT of the fastest
    η, every    each kept split with them                              the Pareto set of samples/s and mean staleness

The choice is the freshest of the Pareto set that is at most `SLOWER` below the fastest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from asyncrl.config.checks.check import check
from asyncrl.config.schema import Config
from asyncrl.errors import ConfigError
from asyncrl.simulate.accelerators import KV_CACHE, memory_of
from asyncrl.simulate.estimator import Estimator, Inputs
from asyncrl.simulate.figures import Figures, figures
from asyncrl.simulate.setting import Setting
from asyncrl.simulate.simulation import simulate

TENSOR_PARALLEL = (1, 2, 4, 8)
ETAS = (0, 1, 2, 4, 8)
PUBLISH_EVERY = (1, 2, 4)
KEPT = 0.8
SLOWER = 0.05
STEPS_A_VERSION = 10
"""At least so many steps are simulated for each version that generation may run ahead: groups come in bursts of η + 1
batches, and a few bursts say nothing of the mean."""


@dataclass(frozen=True)
class Split:
    """Who gets how many accelerators."""

    num_generators: int
    tensor_parallel: int
    num_learners: int
    credit: int
    """Groups in flight at one generator: what its KV cache has room for, at most what can be admitted."""


@dataclass(frozen=True)
class Candidate:
    """One configuration and what became of it."""

    split: Split
    eta: int
    publish_every: int
    result: Figures

    @property
    def overrides(self) -> list[str]:
        """To paste behind `asyncrl launch`."""
        return [
            f"generator.count={self.split.num_generators}",
            f"generator.tensor_parallel={self.split.tensor_parallel}",
            f"generator.max_groups_in_flight={self.split.credit}",
            f"learner.count={self.split.num_learners}",
            f"replay.max_staleness={self.eta}",
            f"publish.every={self.publish_every}",
        ]


class Outcome(Protocol):
    """What a choice looks at, simulated or measured."""

    @property
    def samples_per_s(self) -> float: ...
    @property
    def staleness_mean(self) -> float: ...


class Tried(Protocol):
    """A `Candidate`, or what a benchmark measured."""

    @property
    def result(self) -> Outcome: ...


AnyTried = TypeVar("AnyTried", bound=Tried)


@dataclass(frozen=True)
class Plan:
    """The Pareto set, fastest first, and the one to take."""

    pareto: list[Candidate]
    chosen: Candidate
    reason: str
    num_simulated: int
    too_large: list[str]
    """Splits that do not fit, and why."""


def make_plan(given: Inputs, num_accelerators: int, num_steps: int, dollars_per_hour: float | None) -> Plan:
    """
    Args:
        num_steps: of each simulation, at least.

    Raises:
        ConfigError: nothing fits, or the configuration leaves nothing to plan.
    """
    if given.config.replay.ess_target is not None:
        raise ConfigError("a plan chooses η, and replay.ess_target would move it; set replay.ess_target=null")
    if given.config.cluster.share_gpu:
        raise ConfigError("cluster.share_gpu=true is for one GPU, which cannot be divided; set cluster.share_gpu=false")
    splits, too_large = _splits(given, num_accelerators)
    if not splits:
        raise ConfigError(
            f"--gpus {num_accelerators}: no split fits: {'; '.join(too_large) or 'two are needed at least'}"
        )

    def tried(split: Split, eta: int, publish_every: int) -> Candidate:
        config = with_split(given.config, split, eta, publish_every)
        return Candidate(split, eta, publish_every, simulated(given, config, num_steps, dollars_per_hour))

    alone = [tried(split, ETAS[-1], 1) for split in splits]
    enough = KEPT * max(candidate.result.samples_per_s for candidate in alone)
    kept = [candidate.split for candidate in alone if candidate.result.samples_per_s >= enough]
    cadences = [
        (eta, every) for eta in ETAS for every in PUBLISH_EVERY if every <= eta + 1 and (eta, every) != (ETAS[-1], 1)
    ]
    candidates = alone + [tried(split, eta, every) for split in kept for eta, every in cadences]
    pareto = pareto_set(candidates)
    chosen = choose(pareto)
    return Plan(pareto, chosen, _reason(chosen, pareto), len(candidates), too_large)


def simulated(given: Inputs, config: Config, num_steps: int, dollars_per_hour: float | None = None) -> Figures:
    """What `config` makes of the given rates, over `num_steps` at least, and enough that the means say something."""
    enough_steps = max(num_steps, STEPS_A_VERSION * (config.replay.max_staleness + 1))
    timings = given.estimator.timings(config, given.workload)
    return figures(simulate(Setting(config, timings, given.workload, enough_steps)), dollars_per_hour)


def pareto_set(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that no other beats in samples/s without more mean staleness; fastest first."""
    by_speed = sorted(candidates, key=lambda one: (-one.result.samples_per_s, one.result.staleness_mean))
    pareto: list[Candidate] = []
    for candidate in by_speed:
        if not pareto or candidate.result.staleness_mean < pareto[-1].result.staleness_mean:
            pareto.append(candidate)
    return pareto


def choose(tried: Sequence[AnyTried]) -> AnyTried:
    """The freshest that is at most `SLOWER` below the fastest."""
    enough = (1 - SLOWER) * max(one.result.samples_per_s for one in tried)
    return min((one for one in tried if one.result.samples_per_s >= enough), key=lambda one: one.result.staleness_mean)


def with_split(config: Config, split: Split, eta: int, publish_every: int) -> Config:
    """The configuration with all that a plan decides."""
    generator = replace(
        config.generator,
        count=split.num_generators,
        tensor_parallel=split.tensor_parallel,
        max_groups_in_flight=split.credit,
    )
    return replace(
        config,
        generator=generator,
        learner=replace(config.learner, count=split.num_learners),
        replay=replace(config.replay, max_staleness=eta),
        publish=replace(config.publish, every=publish_every),
    )


def _splits(given: Inputs, num_accelerators: int) -> tuple[list[Split], list[str]]:
    splits, too_large = [], []
    for num_generators, parts, num_learners in _divisions(num_accelerators):
        most = (ETAS[-1] + 1) * given.config.learner.batch_size
        split = Split(num_generators, parts, num_learners, credit=-(-most // num_generators))
        config = with_split(given.config, split, ETAS[-1], 1)
        problem = reason_against(given.estimator, config)
        if problem is not None:
            too_large.append(f"{num_generators} generators × TP {parts}, {num_learners} learners: {problem}")
            continue
        room = given.estimator.timings(config, given.workload).max_sequences // config.algorithm.group_size
        splits.append(replace(split, credit=max(1, min(split.credit, room))))
    return splits, too_large


def _divisions(num_accelerators: int) -> Iterator[tuple[int, int, int]]:
    """Generators, TP, learners that use all of them."""
    for parts in TENSOR_PARALLEL:
        for num_generators in range(1, (num_accelerators - 1) // parts + 1):
            yield num_generators, parts, num_accelerators - num_generators * parts


def reason_against(estimator: Estimator, config: Config) -> str | None:
    """Why this cannot run, or a role does not fit its accelerator; or None."""
    try:
        check(config, estimator.device, estimator.shape)
    except ConfigError as error:
        return str(error)
    has = estimator.accelerator.memory_bytes
    for one in memory_of(config, estimator.shape, estimator.topology(config), estimator.accelerator):
        if estimator.device == "gpu" and not one.on_gpu:
            continue
        if one.num_bytes > has:
            return f"{one.holder} needs {one.num_bytes / 1e9:.0f} GB of {has / 1e9:.0f}"
        if any(item.name == KV_CACHE and item.num_bytes == 0 for item in one.items):
            return f"{one.holder} has no room for a KV cache"
    return None


def _reason(chosen: Candidate, pareto: Sequence[Candidate]) -> str:
    result, fastest = chosen.result, pareto[0].result
    side = "the generators" if result.generation_s > result.learning_s else "the learners"
    speed = (
        "It is the fastest"
        if chosen is pareto[0]
        else f"It has {result.samples_per_s / fastest.samples_per_s:.1%} of the fastest one's samples/s"
    )
    fresh = f"at a mean staleness of {result.staleness_mean:.2f}"
    against = "" if chosen is pareto[0] else f" instead of {fastest.staleness_mean:.2f}"
    return f"{speed} {fresh}{against}; {side} decide its step, and are busy {result.overlap_efficiency:.0%} of it."
