"""A plan for people and for programs."""

from __future__ import annotations

import json
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from asyncrl.simulate.plan import Candidate, Plan


def plan_to_json(plan: Plan) -> str:
    """Candidates with their figures; `overrides` is what to launch with."""
    return json.dumps(
        {
            "chosen": _record(plan.chosen),
            "reason": plan.reason,
            "pareto": [_record(candidate) for candidate in plan.pareto],
            "num_simulated": plan.num_simulated,
            "too_large": plan.too_large,
        },
        indent=1,
        ensure_ascii=False,
    )


def print_plan(plan: Plan, console: Console) -> None:
    """The Pareto table, the choice, why, and what to paste."""
    title = f"Of {plan.num_simulated} simulated configurations, those that none beats in both speed and freshness"
    table = Table(title=title, title_justify="left", title_style="bold")
    has_price = plan.chosen.result.dollars_per_million_tokens is not None
    headings = ["", "generators", "learners", "in flight", "η", "every", "samples/s", "lag", "idle", "$/1M"]
    for heading in headings[: None if has_price else -1]:
        table.add_column(heading, justify="right")
    for candidate in plan.pareto:
        split, result = candidate.split, candidate.result
        price = [f"{result.dollars_per_million_tokens:.3g}"] if has_price else []
        table.add_row(
            "→" if candidate is plan.chosen else "",
            f"{split.num_generators} × TP {split.tensor_parallel}",
            f"{split.num_learners}",
            f"{split.credit}",
            f"{candidate.eta}",
            f"{candidate.publish_every}",
            f"{result.samples_per_s:,.4g}",
            f"{result.staleness_mean:.2f}",
            f"{result.generator_idle:.0%}, {result.learner_idle:.0%}",
            *price,
        )
    table.caption = "in flight: groups at one generator; idle: generators, learners; $/1M: for a million trained tokens"
    table.caption_justify = "left"
    console.print(table)
    console.print(plan.reason, highlight=False)
    console.print("  " + " ".join(plan.chosen.overrides), highlight=False, markup=False, soft_wrap=True)
    for reason in plan.too_large:
        console.print(f"• left out: {reason}", highlight=False, markup=False, soft_wrap=True)


def _record(candidate: Candidate) -> dict[str, object]:
    return {"overrides": candidate.overrides, **asdict(candidate.result)}
