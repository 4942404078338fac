"""One module knows what accelerators are called: asyncrl/devices.py.

The rule for all others: they use no attribute called `cuda` or `nccl` (`torch.cuda`), and no string that names a
device, its library or its variables: none with cuda, nccl, nvidia or rocm in it. `GPU`, Ray's name for it, stands in
messages alone. Allowed are docstrings; messages for people, which are strings with a space; and the two values of the
configuration, `gpu` (cluster.device) and `nccl` (publish.transport). `publish/groups/nccl.py` is that transport.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "asyncrl"
KNOWING = {PACKAGE / "devices.py", PACKAGE / "publish" / "groups" / "nccl.py"}
ATTRIBUTES = {"cuda", "nccl"}
NAMES = re.compile(r"cuda|nccl|nvidia|rocm", re.IGNORECASE)
VALUES = {"gpu", "nccl"}
RAY_RESOURCE = "GPU"
PRINTING = {PACKAGE / "commands" / "check.py"}


def literals(source: str, file_prints: bool = False) -> Iterator[str]:
    """What breaks the rule in a module, with its line.

    Args:
        file_prints: it writes `GPU` for people.
    """
    tree = ast.parse(source)
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in ATTRIBUTES:
            yield f"line {node.lineno}: .{node.attr}"
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            text = node.value
            is_ray = text == RAY_RESOURCE and not file_prints
            if is_ray or (NAMES.search(text) and " " not in text and text not in VALUES):
                yield f"line {node.lineno}: {text!r}"


def test_no_module_but_one_knows_what_accelerators_are_called():
    modules = [file for file in PACKAGE.rglob("*.py") if file not in KNOWING]
    found = {str(file.relative_to(PACKAGE)): list(literals(file.read_text(), file in PRINTING)) for file in modules}
    assert {file: lines for file, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    ("source", "is_found"),
    [
        ("torch.cuda.is_available()", True),
        ("x = 'cuda' if gpu else 'cpu'", True),
        ("x = {'NCCL_SOCKET_IFNAME': 'lo'}", True),
        ("x = resources.get('GPU', 0)", True),
        ("x = f'cpu:gloo,{y}:nccl'", True),
        ('"""About CUDA."""', False),
        ("x = 'NCCL cannot put two ranks on one GPU'", False),
        ("x = transport == 'nccl' and device == 'gpu'", False),
    ],
)
def test_the_rule_finds_what_it_is_for_and_nothing_else(source, is_found):
    assert bool(list(literals(source))) == is_found
