"""What `import asyncrl` gives."""

from __future__ import annotations

import subprocess
import sys

import pytest

import asyncrl


def in_a_fresh_process(program: str) -> str:
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_the_exported_names_are_these_and_each_is_there() -> None:
    assert sorted(asyncrl.__all__) == ["Config", "Run", "evaluate", "launch", "load_config"]
    assert all(callable(getattr(asyncrl, name)) for name in asyncrl.__all__)


@pytest.mark.parametrize("name", ["Config", "Run", "load_config"])
def test_what_reads_configurations_and_runs_loads_neither_torch_nor_ray(name: str) -> None:
    program = (
        f"import asyncrl, sys; asyncrl.{name}; print({{'torch', 'ray', 'vllm', 'transformers'}} & set(sys.modules))"
    )
    assert in_a_fresh_process(program) == "set()"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'asyncrl' has no attribute 'train'"):
        asyncrl.train  # noqa: B018
