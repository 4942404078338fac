"""The diagnostics of one step by the lag of its tokens, as a Markdown table for TensorBoard."""

from __future__ import annotations

import math
from collections.abc import Mapping

from asyncrl.transport.messages.base import MetricValue

COLUMNS = {
    "tokens": "tokens",
    "ratio mean": "ratio_mean",
    "ratio max": "ratio_max",
    "KL(μ‖π), k1": "kl_behaviour_k1",
    "KL(μ‖π), k3": "kl_behaviour",
    "clipped": "clip_fraction",
    "masked": "masked_fraction",
    "truncated": "truncated_fraction",
    "effective sample size": "effective_sample_size",
}
"""Title → name of the metric within its family (see `learn/update/token_metrics.py`)."""


def lag_table(row: Mapping[str, MetricValue]) -> str | None:
    """The table of a metrics row: engines' mismatch, each bucket of lags, all tokens. None if no token was trained."""
    buckets = [key.partition("/")[0] for key in row if key.startswith("lag_") and key.endswith("/tokens")]
    if not buckets:
        return None
    titles = {"mismatch": "0, before the first update"} if "mismatch/tokens" in row else {}
    titles |= {bucket: bucket.removeprefix("lag_").replace("_up", "+").replace("_", "–") for bucket in buckets}
    titles["policy"] = "all"
    values = {**row, "policy/tokens": row["tokens/trained"]}
    lines = [["lag", *COLUMNS], ["---:"] * (1 + len(COLUMNS))]
    lines += [
        [title, *(_cell(values.get(f"{family}/{name}")) for name in COLUMNS.values())]
        for family, title in titles.items()
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: MetricValue | None) -> str:
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
