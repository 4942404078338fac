from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def audit(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "audit.py"), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_no_pinned_version_and_no_lower_bound_is_in_the_list_of_advisories() -> None:
    done = audit(ROOT)
    assert done.returncode == 0, done.stderr
    assert "0 affected. Not asked: PyPI" in done.stdout


def test_an_affected_pin_or_bound_of_any_constraints_file_is_named_with_its_advisory(tmp_path: Path) -> None:
    shutil.copy(ROOT / "constraints-cpu.txt", tmp_path)
    (tmp_path / "constraints-gpu.txt").write_text("torch==2.5.1+cu121\nPillow==11.2.1\nrequests==2.32.4\n")
    (tmp_path / "pyproject.toml").write_text('[project]\ndependencies = ["pyarrow>=12", "ray>=2.60"]\n')
    done = audit(tmp_path)
    assert done.returncode == 1
    assert [line.split(" (")[0].split(": ")[:3] for line in done.stderr.splitlines()] == [
        ["constraints-gpu.txt", "torch 2.5.1+cu121", "CVE-2025-32434  torch.load runs code though weights_only=True"],
        ["constraints-gpu.txt", "Pillow 11.2.1", "CVE-2025-48379  writing a DDS image overflows a buffer"],
        ["pyproject.toml", "pyarrow 12", "CVE-2023-47248  reading an IPC or parquet file runs code"],
    ]
