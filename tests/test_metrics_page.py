"""docs/metrics.md explains every metric that the source can write, and no other. A real run: tests/system."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import torch

from asyncrl.algorithms.correction import Correction
from asyncrl.algorithms.loss import PolicyLoss
from asyncrl.algorithms.stats import policy_stats
from tests.support.metric_names import documented, undocumented

PACKAGE = Path(__file__).parents[1] / "asyncrl"
BUILT_NAMES = {
    "eval/pass@k",
    "reward/term/NAME",
    "data/NAME/fraction",
    "data/NAME/reward_mean",
    "data/NAME/accuracy",
    "engine/NAME/fraction",
    "engine/NAME/staleness_mean",
    "engine/NAME/staleness_max",
    "eval/data/NAME/accuracy",
}
TEXT_FOR_TRACKERS = {"lag/table"}


def names_in_the_source() -> set[str]:
    """Every string that looks like a metric of a family on the page."""
    families = "|".join({name.partition("/")[0] for name in documented()})
    constants = {
        node.value
        for file in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    return {text for text in constants if re.fullmatch(rf"({families}|lag|mismatch)/[a-z0-9_]+", text)}


def names_of_a_family() -> set[str]:
    """What `TokenMetrics` writes of each family, `policy_stats` being what it averages."""
    one = torch.zeros(1)
    stats = policy_stats(one, one, PolicyLoss(one, one > 0), Correction(one, one, one > 0, one > 0))
    averaged = {*stats, "entropy"} - {"ratio"}
    return {f"policy/{name}" for name in averaged | {"tokens", "ratio_mean", "ratio_max", "effective_sample_size"}}


def test_every_metric_in_the_source_is_explained() -> None:
    assert undocumented(names_in_the_source() | names_of_a_family()) - TEXT_FOR_TRACKERS == set()


def test_every_metric_that_is_explained_is_in_the_source() -> None:
    assert documented() - names_in_the_source() - names_of_a_family() == BUILT_NAMES


def test_each_metric_is_explained_once() -> None:
    page = (PACKAGE.parent / "docs" / "metrics.md").read_text(encoding="utf-8")
    first_cells = re.findall(r"^\| `([^`]+)`", page, re.MULTILINE)
    assert len(first_cells) == len(set(first_cells)) == len(documented())
