"""`generator.engine=sglang` against a real SGLang: what it samples, what it is published, how it ends."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import pytest

from asyncrl.generate.engines.installed import SGLANG_VERSION
from tests.support.fresh import run_fresh
from tests.support.publish import TOLERANCE


def installed() -> str | None:
    try:
        return version("sglang")
    except PackageNotFoundError:
        return None


pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(
        installed() != SGLANG_VERSION,
        reason=f"SGLang {SGLANG_VERSION} is not installed ({installed()} is); EXTRA=cpu,sglang make install",
    ),
]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    from tests.support.sglang_scenarios import all_of_them

    return run_fresh(all_of_them, tmp_path_factory.mktemp("sglang"))


@pytest.mark.parametrize("kind", ["tied, sliced", "untied, TP 2, delta"])
def test_after_every_publish_sglang_samples_from_exactly_the_learners_policy(seen: dict[str, Any], kind: str) -> None:
    assert len(seen[kind]) == 4
    assert max(seen[kind]) < TOLERANCE


def test_a_seed_gives_the_same_tokens_alone_and_beside_other_requests(seen: dict[str, Any]) -> None:
    alone, together = seen["seeds"]
    assert [one.token_ids.tolist() for one in alone] == [one.token_ids.tolist() for one in together]
    assert len({tuple(one.token_ids.tolist()) for one in alone}) > 1


def test_a_prompt_with_its_completion_may_be_as_long_as_the_model_takes(seen: dict[str, Any]) -> None:
    assert [len(one.token_ids) for one in seen["longest"]] == [1, 1]


def test_every_token_carries_the_version_that_sampled_it_through_publishes_in_flight(seen: dict[str, Any]) -> None:
    """That its logprob is that version's is asserted where the policies are, in `sglang_scenarios.py`."""
    completions = seen["in flight"]
    assert len(completions) == 16
    assert all((np.diff(one.versions) >= 0).all() for one in completions)
    assert any(len(set(one.versions.tolist())) > 1 for one in completions)


def test_a_request_that_is_given_up_is_forgotten(seen: dict[str, Any]) -> None:
    assert seen["given up"] == 0


def test_a_scheduler_that_is_killed_is_noticed(seen: dict[str, Any]) -> None:
    assert seen["noticed after s"] < 10


def test_what_sglang_cannot_do_is_refused_with_its_reason(seen: dict[str, Any]) -> None:
    assert "samples from the whole vocabulary: top_p=1, top_k=-1" in seen["truncated"]
    assert seen["too small a cache"].startswith("ConfigError: generator.kv_cache_bytes=1024 holds ")
    assert seen["no weights"].startswith("RunError: SGLang did not start: ")
    assert "weights" in seen["no weights"]
