"""Data sets to the shape of other trainers' public ones, and their recipes as the docs have them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from asyncrl.data.arithmetic import arithmetic_rows

DOCS = Path(__file__).parents[2] / "docs"

TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"
"""A chat template for the tiny model, whose tokenizer knows no other characters than those of the rows."""


def recipes(page: str) -> list[str]:
    """Each configuration on a page of docs/."""
    return re.findall(r"```yaml\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


def write_verl(folder: Path) -> None:
    """train.parquet and test.parquet as verl's examples/data_preprocess/gsm8k.py writes them."""
    for split in ("train", "test"):
        rows: list[dict[str, Any]] = [
            {
                "data_source": "openai/gsm8k",
                "prompt": [{"role": "user", "content": prompt}],
                "ability": "math",
                "reward_model": {"style": "rule", "ground_truth": answer},
                "extra_info": {"split": split, "index": number, "answer": f"#### {answer}", "question": prompt},
            }
            for number, (prompt, answer) in enumerate(arithmetic_rows(split, seed=0))  # type: ignore[arg-type]
        ]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"{split}.parquet")


def write_trl(folder: Path) -> None:
    """A conversational prompt-only data set with a column `solution`, as `Dataset.to_parquet` writes it."""
    for split in ("train", "test"):
        rows = [
            {"prompt": [{"role": "user", "content": prompt}], "solution": answer}
            for prompt, answer in arithmetic_rows(split, seed=0)  # type: ignore[arg-type]
        ]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"{split}.parquet")
