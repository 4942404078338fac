"""Each token carries the version that sampled it, also in requests that a publish meets in their middle."""

from __future__ import annotations

import numpy as np

from asyncrl.errors import SelftestError
from asyncrl.selftest.agreement import differences, tolerance_of
from asyncrl.selftest.load import NUM_TRIES, Load
from asyncrl.selftest.result import Check, Figures
from asyncrl.selftest.system import Part, Sampled, System

MOST_SCORED = 24


def run(system: System) -> Figures:
    num_spanning = 0
    for generator in system.generators:
        if system.version < 0:
            system.publish()
        spanning, across = _met_by_a_publish(system, generator)
        num_spanning += spanning
        _require_own_versions(system, across, generator.name)
    return {"requests_with_two_versions": num_spanning}


def _met_by_a_publish(system: System, generator: Part) -> tuple[int, list[Sampled]]:
    """How many requests have tokens of two versions, and those requests, before some others."""
    for _ in range(NUM_TRIES):
        with Load(system, generator) as load:
            system.publish(kv_cache="recompute")
            fresh = system.sample(generator, [system.prompt(1, 8)], system.sampling(4))
        if _labels(fresh) != {system.version}:
            raise SelftestError(
                f"{generator.name}: a request that came after version {system.version} was published has tokens of "
                f"versions {sorted(_labels(fresh))}"
            )
        sampled = load.sampled()
        for one in sampled:
            versions = one.completions[0].versions
            if not set(versions.tolist()) <= {system.version - 1, system.version} or (np.diff(versions) < 0).any():
                raise SelftestError(
                    f"{generator.name}: while version {system.version} was published, a request got the versions "
                    f"{versions.tolist()}"
                )
        num_spanning = sum(len(_labels([one])) > 1 for one in sampled)
        if num_spanning:
            return num_spanning, sorted(sampled, key=lambda one: -len(_labels([one])))[:MOST_SCORED]
    raise SelftestError(
        f"{generator.name}: {len(sampled)} requests were in flight during each of {NUM_TRIES} publishes, and none has "
        "tokens of both versions"
    )


def _require_own_versions(system: System, sampled: list[Sampled], where: str) -> None:
    """Each token's logprob is that of the policy it says."""
    engine = np.concatenate([one.completions[0].logprobs for one in sampled])
    versions = np.concatenate([one.completions[0].versions for one in sampled])
    tolerance = tolerance_of(system, 1.0)
    for version in np.unique(versions).tolist():
        mine = differences(system, sampled, version, 1.0, engine)[versions == version]
        if not tolerance.holds(mine):
            raise SelftestError(
                f"{where}: {len(mine)} tokens of requests that a publish met say version {version}, and their "
                f"log-probabilities differ from it by {mine.mean():.2g} in the mean and {mine.max():.2g} at most"
            )


def _labels(sampled: list[Sampled]) -> set[int]:
    return {int(version) for one in sampled for completion in one.completions for version in completion.versions}


CHECK = Check(
    "labels",
    run,
    "Do not train with replay.max_staleness above 0: lags and importance ratios would be of other policies. When no "
    "request has tokens of two versions, set generator.max_tokens higher; if there are none still, the engine labels "
    "whole requests.",
)
