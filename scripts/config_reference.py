"""Writes the list of every key into docs/configuration.md, from config/schema.py, algorithm.py and environment.py.

    .venv/bin/python scripts/config_reference.py

A test fails while the page and the code differ.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import json
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from asyncrl.config.data import MixtureSet
from asyncrl.config.schema import Config, RewardTerm

PAGE = Path(__file__).parent.parent / "docs" / "configuration.md"
HEADING = "## Every key\n"


def page() -> str:
    """The page as it should be: what stands before the heading, then the list."""
    written_by_hand, _, _ = PAGE.read_text().partition(HEADING)
    return f"{written_by_hand}{HEADING}\n{reference()}"


def reference() -> str:
    """A heading for each section, a line for each key."""
    lines = []
    for name, schema in get_type_hints(Config).items():
        lines += [f"### {name}", "", *_lines(schema, f"{name}."), ""]
    return "\n".join(lines).rstrip() + "\n"


def _lines(schema: type, prefix: str) -> list[str]:
    meanings, lines = _field_docstrings(schema), []
    for item in fields(schema):
        meaning = meanings.get(item.name)
        lines.append(f"- `{prefix}{item.name}` = {_default(item)}" + (f". {meaning}" if meaning else ""))
    items = {"reward.": ("terms", RewardTerm), "data.": ("mixture", MixtureSet)}
    return lines + (_lines(items[prefix][1], f"{prefix}{items[prefix][0]}[].") if prefix in items else [])


def _field_docstrings(schema: type) -> dict[str, str]:
    """Field → the string that follows it in the source, on one line."""
    (body,) = (node.body for node in ast.walk(ast.parse(inspect.getsource(schema))) if isinstance(node, ast.ClassDef))
    found = {}
    for statement, after in itertools.pairwise(body):
        if isinstance(statement, ast.AnnAssign) and isinstance(after, ast.Expr):
            assert isinstance(statement.target, ast.Name)
            found[statement.target.id] = " ".join(ast.literal_eval(after.value).split())
    return found


def _default(item: Field[Any]) -> str:
    value = item.default if item.default_factory is MISSING else item.default_factory()
    if value == "???":
        return "(no default)"
    if isinstance(value, list):
        value = [vars(entry) if is_dataclass(entry) else entry for entry in value]
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


if __name__ == "__main__":
    PAGE.write_text(page())
