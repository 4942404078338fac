"""A plan for people and for programs."""

from __future__ import annotations

import json
from dataclasses import asdict

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from asyncrl.simulate.plan import Candidate, Plan
from asyncrl.simulate.show import print_not_simulated


def plan_to_json(plan: Plan, not_simulated: list[str]) -> str:
    """Candidates with their figures; `overrides` is what to launch with."""
    return json.dumps(
        {
            "chosen": _record(plan.chosen),
            "reason": plan.reason,
            "pareto": [_record(candidate) for candidate in plan.pareto],
            "num_simulated": plan.num_simulated,
            "too_large": plan.too_large,
            "not_simulated": not_simulated,
        },
        indent=1,
        ensure_ascii=False,
    )


def print_plan(plan: Plan, not_simulated: list[str], console: Console) -> None:
    """The Pareto table, the choice, why, and what to paste."""
    title = f"Of {plan.num_simulated} simulated configurations, those that none beats in both speed and freshness"
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    has_price = plan.chosen.result.dollars_per_million_tokens is not None
    headings = ["", "gen × TP", "learn", "flight", "η", "every", "samples/s", "lag", "idle", "$/1M"]
    for heading in headings[: None if has_price else -1]:
        table.add_column(heading, justify="right", no_wrap=True)
    for candidate in plan.pareto:
        split, result = candidate.split, candidate.result
        price = [f"{result.dollars_per_million_tokens:.2g}"] if has_price else []
        table.add_row(
            "→" if candidate is plan.chosen else "",
            f"{split.num_generators} × {split.tensor_parallel}",
            f"{split.num_learners}",
            f"{split.credit}",
            f"{candidate.eta}",
            f"{candidate.publish_every}",
            f"{result.samples_per_s:,.1f}",
            f"{result.staleness_mean:.2f}",
            f"{result.generator_idle:.0%} {result.learner_idle:.0%}",
            *price,
        )
    table.caption = "gen, learn: generators, learners, and the idle share of each; flight: groups at one generator"
    table.caption_justify = "left"
    console.print(table)
    console.print(plan.reason, highlight=False)
    console.print("  " + " ".join(plan.chosen.overrides), highlight=False, markup=False, soft_wrap=True)
    for reason in plan.too_large:
        console.print(f"• left out: {reason}", highlight=False, markup=False, soft_wrap=True)
    print_not_simulated(not_simulated, console)


def _record(candidate: Candidate) -> dict[str, object]:
    return {"overrides": candidate.overrides, **asdict(candidate.result)}
