"""What a run has under it, as its launcher saw it: for who reads the run later, perhaps on another machine."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

FILE_NAME = "hardware.json"


@dataclass(frozen=True)
class Hardware:
    """Of all nodes together."""

    device: Literal["cpu", "gpu"]
    """On which generators and learners run."""
    num_cpus: float
    gpus: list[str]
    """Each kind by Ray's name, such as H100."""


def save_hardware(run_dir: Path, hardware: Hardware) -> None:
    """At once, since `asyncrl report` may read it in this moment."""
    temporary = run_dir / f".{FILE_NAME}.partial"
    temporary.write_text(json.dumps(asdict(hardware)) + "\n")
    os.replace(temporary, run_dir / FILE_NAME)


def read_hardware(run_dir: Path) -> Hardware | None:
    """None: the run has not come so far, or is of an earlier asyncrl."""
    file = run_dir / FILE_NAME
    return Hardware(**json.loads(file.read_text())) if file.is_file() else None
