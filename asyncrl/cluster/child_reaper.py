"""Ends a role's children when the role's process ends, however it ended.

A generator that is killed cannot stop its vLLM engine, which would live on and keep its memory; Ray's own clean-up does
not reach it when the Ray node goes down at the same time. So each role leads a process group, and a reaper outside of
it waits for the role's end and then kills the group. Linux alone (pidfd); standard library alone, so it starts at once.

Waits for  the role's process to end; nothing else, for as long as it lives.
"""

import os
import select
import signal
import subprocess
import sys
from contextlib import suppress


def watch_over_this_process() -> None:
    """Makes this process the leader of a group and starts its reaper."""
    os.setpgid(0, 0)
    command = [sys.executable, "-S", "-E", __file__, str(os.getpid())]
    subprocess.Popen(command, start_new_session=True, stdin=subprocess.DEVNULL)


def _guard(pid: int) -> None:
    with suppress(ProcessLookupError):  # it has ended already
        select.select([os.pidfd_open(pid)], [], [])  # readable once the process has ended
    with suppress(ProcessLookupError):  # nobody is left
        os.killpg(pid, signal.SIGKILL)


if __name__ == "__main__":
    _guard(int(sys.argv[1]))
