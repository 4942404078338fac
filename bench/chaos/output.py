"""What a launched run has said so far, read from its files as they grow: no look reads more than what is new."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

TAIL_BYTES = 1 << 18
"""More than two rows of metrics take."""
NAMED_LINE = re.compile(r"^(generator|learner|replay)(-\d+)? (failed|was silent)", re.MULTILINE)
"""What the launcher prints of a role that it has given up."""


def last_row(run_dir: Path) -> dict[str, float] | None:
    """The last whole row of metrics.jsonl; None when there is none yet. A resumed run may have cut rows off."""
    file = run_dir / "metrics.jsonl"
    if not file.is_file():
        return None
    with file.open("rb") as rows:
        rows.seek(max(0, file.stat().st_size - TAIL_BYTES))
        whole, _, _ = rows.read().rpartition(b"\n")
    return json.loads(whole.rpartition(b"\n")[2]) if whole else None


class Output:
    """Of the launchers, one after another, in one file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._num_read_bytes = 0
        self._named: Counter[str] = Counter()

    def num_named(self, role: str) -> int:
        """How often a generator, a learner or replay was given up."""
        with self.path.open("rb") as output:
            output.seek(self._num_read_bytes)
            whole, end, _ = output.read().rpartition(b"\n")
        self._num_read_bytes += len(whole) + len(end)
        self._named.update(found[0] for found in NAMED_LINE.findall(whole.decode(errors="replace")))
        return self._named[role]

    def tail(self) -> str:
        return self.path.read_text(errors="replace")[-4000:]
