"""Starts the roles, watches them, stops them.

Consumes   heartbeats and reports of every role; requests of `asyncrl scale`; Ctrl-C.
Produces   rows for the recorder; restarted roles; generators that join and leave; Stop for the roles; the outcome.
Waits for  each role to come up (at most run.startup_timeout_s), to be heard from (every run.heartbeat_timeout_s), any
           of them to finish something (every run.no_progress_timeout_s), and each to end after Stop (at most
           run.stop_timeout_s). Its error names who is late, with the last log lines.
"""

from __future__ import annotations

import time
from typing import Literal

from asyncrl.cluster.ray_cluster import Cluster, Failure
from asyncrl.cluster.roles import RunPlan
from asyncrl.errors import ConfigError, DeadlineError, RoleDiedError
from asyncrl.run.directory import first_error, log_tail
from asyncrl.supervise.diagnosis import write_diagnosis
from asyncrl.supervise.generators import Generators
from asyncrl.supervise.interrupts import Interrupts
from asyncrl.supervise.processes import Processes
from asyncrl.supervise.recovery import Recovery
from asyncrl.transport.control_server import ControlServer
from asyncrl.transport.messages.publishing import Failed
from asyncrl.transport.messages.scaling import Drained, Scaled
from asyncrl.watch.console import LiveView
from asyncrl.watch.recorder import Recorder

POLL_MS = 100
LAST_WORDS_S = 1.0
"""How long to wait, after a role raised an error, for its last rows and for the death of another role that may be the
cause."""

Outcome = Literal["complete", "interrupted"]


class Supervisor:
    """The roles of one run."""

    def __init__(
        self, plan: RunPlan, cluster: Cluster, control: ControlServer, recorder: Recorder, view: LiveView
    ) -> None:
        self._plan = plan
        self._control = control
        self._recorder = recorder
        self._view = view
        self._processes = Processes(plan, cluster, control)
        self._generators = Generators(plan, cluster, self._processes, control, view)
        self._recovery = Recovery(plan, cluster, self._processes, self._generators, control, view)
        self._stopping = False

    def start(self) -> None:
        """Creates every role's process and sets it running.

        Raises:
            ConfigError: replay.port is in use.
            DeadlineError, RoleDiedError: a process did not start.
        """
        self._processes.start_all(lambda: self._receive(POLL_MS))

    def watch(self, interrupts: Interrupts) -> Outcome:
        """Watches the roles until every learner has ended well, or Ctrl-C.

        Raises:
            RoleDiedError: a role failed, was silent or did not come up; names it.
            DeadlineError: nothing was finished for run.no_progress_timeout_s.
        """
        while not interrupts.count:
            self._receive(POLL_MS)
            self._handle_failures()
            if self._processes.learners_ended and not self._recovery.awaits_learners:
                return "complete"
            self._generators.restart_due()
            self._recovery.restart_due()
            self._answer_requests()
            self._check_progress()
        self._view.event("stopping with a checkpoint; Ctrl-C once more ends the run at once")
        return "interrupted"

    def stop(self, reason: str) -> None:
        """Ends every role cleanly. The learners end first, since they may be in a publish that needs the others.

        Raises:
            RoleDiedError: a role failed while it stopped.
            DeadlineError: a role did not end within run.stop_timeout_s.
        """
        self._stopping = True
        self._control.stop([placement.name for placement in self._plan.topology.learners], reason)
        others_told = False
        timeout_s = self._plan.config.run.stop_timeout_s
        deadline_s = time.monotonic() + timeout_s
        while running := self._processes.alive:
            self._receive(POLL_MS)
            self._handle_failures()
            if not others_told and self._processes.learners_ended:
                self._control.stop_all(reason)
                others_told = True
            if time.monotonic() > deadline_s:
                raise DeadlineError("every role to end", timeout_s, ", ".join(running))
        self._receive(POLL_MS)
        self._handle_failures()

    def diagnose(self, failure: str) -> None:
        """Writes the diagnosis of a run that cannot go on, and says where it is."""
        folder = write_diagnosis(self._plan.run_dir, failure, self._control, self._processes.alive)
        self._view.event(f"where each role was (stacks, queue, last events): {folder}")

    def kill_all(self) -> None:
        """Ends what is left of the roles at once."""
        self._processes.kill_all()

    def _receive(self, poll_ms: int) -> None:
        before = {name: state.phase for name, state in self._control.roles.items()}
        for sender, report in self._control.receive(poll_ms):
            if isinstance(report, Drained):
                self._generators.drained(report.generator)
            else:
                self._recorder.record(sender, report, self._control.roles)
        if self._recorder.num_rows == 0:  # from the first step on, the rows say how it goes
            for name, state in self._control.roles.items():
                if state.phase != before[name]:
                    self._view.phase(name, state.phase)

    def _handle_failures(self) -> None:
        """Goes on without a role while that is allowed; any other failure ends the run."""
        failures = self._failures()
        for name, failure in failures.items():
            if failure.is_final and name not in self._generators:
                raise RoleDiedError(f"{name} {failure.reason}")
        if all(
            self._generators.can_replace(name) or self._recovery.can_replace(name, self._stopping) for name in failures
        ):
            for name, failure in failures.items():
                if name not in self._processes.placements:
                    continue  # a learner rank that was ended together with another
                if name in self._generators:
                    self._generators.handle_death(name, failure, self._stopping)
                else:
                    self._recovery.handle_death(name, failure)
            return
        name, *others = failures
        then = "".join(f"\n{other} then {failures[other].reason}" for other in others)
        cause = first_error(self._plan.run_dir, name)
        first = f"\nthe first error in its log: {cause}" if cause and cause not in failures[name].reason else ""
        raise RoleDiedError(f"{name} {failures[name].reason}{first}{then}\n{self._last_lines(name)}")

    def _failures(self) -> dict[str, Failure]:
        """The cause first: one death makes others fail, so roles whose processes died come before those that raised."""
        failures = self._processes.failures(self._stopping)
        if not all(failure.process_died for failure in failures.values()):
            deadline_s = time.monotonic() + LAST_WORDS_S
            while time.monotonic() < deadline_s:
                self._receive(POLL_MS)
            failures |= self._processes.failures(self._stopping)
        return dict(sorted(failures.items(), key=lambda item: not item[1].process_died))

    def _answer_requests(self) -> None:
        """Answers `asyncrl scale`."""
        while self._control.requests:
            sender, request = self._control.requests.popleft()
            try:
                self._control.send(sender, Scaled(self._generators.scale(request.num_generators)))
            except ConfigError as error:
                self._control.send(sender, Failed(str(error)))

    def _check_progress(self) -> None:
        """Catches what heartbeats do not: a role that lives and hangs, so that in time no role has anything to do."""
        states, timeout_s = self._control.roles, self._plan.config.run.no_progress_timeout_s
        if not all(state.is_ready for state in states.values()):
            return
        last_s = max(state.last_progress_s for state in states.values() if state.last_progress_s is not None)
        if time.monotonic() - last_s > timeout_s:
            waited_for = "a group, a step, a publish or an evaluation (run.no_progress_timeout_s)"
            phases = "; ".join(f"{name} ({state.phase})" for name, state in states.items())
            raise DeadlineError(waited_for, timeout_s, f"one of {phases}")

    def _last_lines(self, name: str) -> str:
        return f"last lines of {name}.log:\n{log_tail(self._plan.run_dir, name)}"
