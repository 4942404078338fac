"""The diagnosis of a run that cannot go on, for people who look for the cause: RUN/diagnosis/TIME/

ROLE.stacks.txt    where each thread of a role was; missing for a role that was dead or frozen
state.json         the failure, each role's phase and figures (replay's: the queue), the last events
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection
from pathlib import Path

from asyncrl.transport.control_server import ControlServer, RoleState

STACKS_TIMEOUT_S = 2.0
POLL_MS = 50


def write_diagnosis(run_dir: Path, failure: str, control: ControlServer, alive: Collection[str]) -> Path:
    """Asks every role for its stacks, waits at most STACKS_TIMEOUT_S for those that are alive, writes what is known.

    Returns:
        The folder.
    """
    folder = run_dir / "diagnosis" / time.strftime("%Y%m%d-%H%M%S")
    folder.mkdir(parents=True, mode=0o700)
    state = {
        "failure": failure,
        "roles": {name: _describe(state) for name, state in control.roles.items()},
        "events": list(control.events),
    }
    (folder / "state.json").write_text(json.dumps(state, indent=1, ensure_ascii=False))
    control.ask_for_stacks()
    deadline_s = time.monotonic() + STACKS_TIMEOUT_S
    while any(control.roles[name].stacks is None for name in alive) and time.monotonic() < deadline_s:
        control.receive(POLL_MS)
    for name, role in control.roles.items():
        if role.stacks is not None:
            (folder / f"{name}.stacks.txt").write_text(role.stacks)
    return folder


def _describe(state: RoleState) -> dict[str, object]:
    return {
        "phase": state.phase,
        "is_ready": state.is_ready,
        "silent_for_s": _seconds_since(state.last_seen_s),
        "no_progress_for_s": _seconds_since(state.last_progress_s),
        "num_done": state.num_done,
        "metrics": state.metrics,
    }


def _seconds_since(moment_s: float | None) -> float | None:
    return None if moment_s is None else round(time.monotonic() - moment_s, 1)
