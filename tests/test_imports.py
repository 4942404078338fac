"""Imports run one way, there are no cycles, and nothing heavy is loaded before it is needed."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "asyncrl"

LAYERS = [
    {"types", "errors", "cli_arguments", "devices", "garbage_collection"},
    {"transport"},
    {"config"},
    {"data", "rewards", "algorithms", "environments", "ledger", "publish", "run"},
    {"replay", "generate"},
    {"learn"},
    {"cluster", "watch"},
    {"supervise", "simulate"},
    {"commands"},
    {"api"},
    {"evaluation", "selftest"},
    {"cli"},
    {"__main__"},
]
"""A part imports only parts of layers above its own line, and itself."""

LEVEL = {part: level for level, layer in enumerate(LAYERS) for part in layer}


def modules() -> dict[str, Path]:
    """Dotted name → file of every module, packages by their own name."""
    names = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return names


def imports_of(file: Path, known: set[str]) -> set[str]:
    """Own modules that a file imports when it runs, also inside functions; not those for type checkers alone."""
    found = set()
    for node in _run_time_nodes(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            assert node.level == 0, f"{file}: relative import"
            found |= {name if (name := f"{node.module}.{alias.name}") in known else node.module for alias in node.names}
    return found & known


def _run_time_nodes(tree: ast.AST) -> list[ast.AST]:
    nodes = []
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        nodes += [child, *_run_time_nodes(child)]
    return nodes


GRAPH = {name: imports_of(file, set(modules())) for name, file in modules().items()}


def part_of(module: str) -> str:
    return module.split(".")[1]


def test_every_part_has_a_layer() -> None:
    parts = {part_of(name) for name in GRAPH if "." in name}
    assert parts <= set(LEVEL), f"give {parts - set(LEVEL)} a place in LAYERS"


def test_imports_run_one_way() -> None:
    wrong = [
        f"{importer} → {imported}"
        for importer, found in GRAPH.items()
        for imported in found
        if "." in importer
        and part_of(importer) != part_of(imported)
        and LEVEL[part_of(imported)] >= LEVEL[part_of(importer)]
    ]
    assert wrong == []


def test_there_is_no_import_cycle() -> None:
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' → '.join(error.args[1])}")


def test_packages_import_nothing() -> None:
    assert [name for name, file in modules().items() if file.name == "__init__.py" and GRAPH[name]] == []


@pytest.mark.parametrize("code", ["import asyncrl", "import asyncrl.cli, sys; sys.exit(asyncrl.cli.main(['--help']))"])
def test_neither_the_package_nor_its_help_loads_anything_heavy(code: str) -> None:
    program = f"""
import atexit, sys
atexit.register(lambda: print("HEAVY:", [m for m in ("torch", "vllm", "ray", "transformers") if m in sys.modules]))
{code}
"""
    environment = {**os.environ, "COLUMNS": "100"}
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "HEAVY: []" in result.stdout


def test_what_simulates_needs_no_torch() -> None:
    """The console of a live run asks it in a process of its own, beside the training."""
    program = "import asyncrl.simulate.advice, asyncrl.simulate.plan, sys; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"
