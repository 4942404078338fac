"""The processes of a run on this (Linux) machine: who belongs to it, on which core, and who else takes its time."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

CLOCK_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PROCESS_LINE = re.compile(r"(\S+) is process (\d+)$", re.MULTILINE)
"""What asyncrl/cluster/role_actor.py logs first."""

ROLE_TITLE = b"ray::RoleActor"
"""As Ray names a process of asyncrl/cluster/role_actor.py."""

GONE = (FileNotFoundError, ProcessLookupError)
"""A process may end while it is looked at."""


def role_pids(run_dir: Path) -> dict[str, int]:
    """Role → process id in its latest life, of the roles that have written to their logs."""
    return {
        name: int(pid)
        for log in sorted((run_dir / "logs").glob("*.log"))
        for name, pid in PROCESS_LINE.findall(log.read_text(errors="replace"))
    }


def is_role(pid: int) -> bool:
    """The process lives, and is a role of a run, not another that was given its number."""
    with suppress(*GONE):
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(ROLE_TITLE)
    return False


def tree(pid: int) -> Iterator[int]:
    """A process and its descendants."""
    with suppress(*GONE):
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        yield pid
        for task in tasks:
            for child in (task / "children").read_text().split():
                yield from tree(int(child))


def pin(run_dir: Path, cores: list[int]) -> dict[str, int]:
    """Binds each generator and learner, with its children and all their threads, to one core in turn.

    Replay, the launcher and Ray stay where the scheduler puts them. Returns role → core.
    """
    pids = {name: pid for name, pid in role_pids(run_dir).items() if name.startswith(("generator-", "learner-"))}
    core_of = {name: cores[position % len(cores)] for position, name in enumerate(sorted(pids))}
    for name, core in core_of.items():
        for pid in tree(pids[name]):
            with suppress(*GONE):
                for task in Path(f"/proc/{pid}/task").iterdir():
                    os.sched_setaffinity(int(task.name), {core})
    return core_of


def cpu_s(pids: Iterator[int]) -> float:
    """CPU seconds that these processes have used so far, with those of their children that have ended."""
    total = 0
    for pid in pids:
        with suppress(*GONE):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += sum(int(ticks) for ticks in fields[11:15])  # utime, stime, cutime, cstime
    return total / CLOCK_TICKS_PER_S


def machine_cpu_s() -> float:
    """CPU seconds that all processes of this machine have used so far."""
    user, nice, system, _idle, _iowait, irq, softirq = Path("/proc/stat").read_text().split()[1:8]
    return sum(map(int, (user, nice, system, irq, softirq))) / CLOCK_TICKS_PER_S
