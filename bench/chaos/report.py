"""What `chaos.py` says at the end: a table of the faults, those over the limits, and the books."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.support.rows import Measurement

DETECTION_LIMIT_S, RECOVERY_LIMIT_S = 10.0, 60.0
MAY_BE_ABOVE_ZERO = ("steps", "prompts trained", "prompts in hand")
"""Of the books."""


@dataclass(frozen=True)
class Fault:
    """One that was survived."""

    kind: str
    detected_s: float
    """Until the launcher named the role; of the launcher's own death, until no process of the run was left."""
    new_step_s: float
    """Until a step was trained that none had trained before."""
    recovered_s: float
    """Until both generators served again, too; vLLM's start-up is most of it where one had died."""

    @property
    def line(self) -> str:
        return f"noticed {self.detected_s:.1f} s, new step {self.new_step_s:.1f} s, all serve {self.recovered_s:.1f} s"

    @property
    def is_noticed_late(self) -> bool:
        return self.detected_s > DETECTION_LIMIT_S

    def is_recovered_late(self, starts_fast: bool) -> bool:
        """Where engines take long to start, their return is not counted: a new step comes without it."""
        return (self.recovered_s if starts_fast else self.new_step_s) > RECOVERY_LIMIT_S


def table(faults: Sequence[Fault], starts_fast: bool) -> str:
    """A line for each kind, in the order of their first appearance by name."""
    lines = [
        "| fault | times | noticed, s (median, most) | new step, s (median, most) | all serve, s (median, most) "
        f"| noticed after {DETECTION_LIMIT_S:.0f} s | recovered after {RECOVERY_LIMIT_S:.0f} s |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind in sorted({fault.kind for fault in faults}):
        of_kind = [fault for fault in faults if fault.kind == kind]
        cells = [
            _median_and_most([fault.detected_s for fault in of_kind]),
            _median_and_most([fault.new_step_s for fault in of_kind]),
            _median_and_most([fault.recovered_s for fault in of_kind]),
            str(sum(fault.is_noticed_late for fault in of_kind)),
            str(sum(fault.is_recovered_late(starts_fast) for fault in of_kind)),
        ]
        lines.append(f"| {kind} | {len(of_kind)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def measurements(faults: Sequence[Fault], found: Mapping[str, float]) -> list[Measurement]:
    """Of each kind of fault, and of the books what has to be 0."""
    kinds = {kind: [fault for fault in faults if fault.kind == kind] for kind in sorted({one.kind for one in faults})}
    seconds = [
        Measurement(f"{kind}: {name}", [getattr(fault, name) for fault in of_kind], "less")
        for kind, of_kind in kinds.items()
        for name in ("detected_s", "new_step_s", "recovered_s")
    ]
    wrong = [(name, value) for name, value in found.items() if name not in MAY_BE_ABOVE_ZERO]
    return seconds + [Measurement(name, [value], "less") for name, value in wrong]


def problems(faults: Sequence[Fault], starts_fast: bool, found: dict[str, float]) -> list[str]:
    """Why this run does not pass, a line each."""
    late = [
        f"fault {number}, {fault.kind}: {fault.line}"
        for number, fault in enumerate(faults, start=1)
        if fault.is_noticed_late or fault.is_recovered_late(starts_fast)
    ]
    return late + [f"{name}: {value:g}" for name, value in found.items() if value and name not in MAY_BE_ABOVE_ZERO]


def _median_and_most(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.1f}, {max(seconds):.1f}"
