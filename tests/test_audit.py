from __future__ import annotations

import re
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
    assert ": 0 affected, " in done.stdout
    assert "Not asked: PyPI" in done.stdout


def test_an_affected_pin_or_bound_of_any_constraints_file_is_named_with_its_advisory(tmp_path: Path) -> None:
    shutil.copy(ROOT / "constraints-cpu.txt", tmp_path)
    (tmp_path / "constraints-gpu.txt").write_text("torch==2.5.1+cu121\nPillow==11.2.1\nrequests==2.33.0\n")
    (tmp_path / "pyproject.toml").write_text('[project]\ndependencies = ["ray>=2.55", "transformers>=5.16.1"]\n')
    done = audit(tmp_path)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if "[accepted: " not in line]
    assert [re.findall(r"^(\S+): (\S+ \S+): \S+ \((CVE-\S+)\)", line)[0] for line in lines] == [
        ("constraints-gpu.txt", "torch 2.5.1+cu121", "CVE-2025-32434"),
        ("constraints-gpu.txt", "torch 2.5.1+cu121", "CVE-2025-2999"),
        ("constraints-gpu.txt", "Pillow 11.2.1", "CVE-2025-48379"),
        ("pyproject.toml", "ray 2.55", "CVE-2026-57516"),
    ]


def test_an_accepted_advisory_is_named_and_passes(tmp_path: Path) -> None:
    (tmp_path / "constraints-gpu.txt").write_text("setuptools==78.1.1\n")
    (tmp_path / "pyproject.toml").write_text("[project]\ndependencies = []\n")
    done = audit(tmp_path)
    assert done.returncode == 0
    assert "setuptools 78.1.1: GHSA-h35f-9h28-mq5c" in done.stderr
    assert "0 affected, 1 more accepted" in done.stdout
