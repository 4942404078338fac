"""Signals to a real process on a terminal of its own."""

import os
import pty
import signal
import subprocess
import sys
import textwrap

import pytest

WAITER = """
import sys, time
from pathlib import Path
from asyncrl.supervise.interrupts import Interrupts

with Interrupts() as interrupts:
    print("ready", flush=True)
    while not interrupts.count:
        time.sleep(0.01)
    time.sleep(0.3)
    print("a line for people", flush=True)
    Path(sys.argv[1]).write_text("checkpoint")
"""


def start(file, terminal, *prefix):
    arguments = [*prefix, sys.executable, "-c", textwrap.dedent(WAITER), str(file)]
    return subprocess.Popen(arguments, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_time_for_a_checkpoint_also_when_the_terminal_goes_with_it(tmp_path, number):
    ours, theirs = pty.openpty()
    process = start(tmp_path / "file", theirs)
    os.close(theirs)
    assert b"ready" in os.read(ours, 100)
    process.send_signal(number)
    if number == signal.SIGHUP:
        os.close(ours)
    assert process.wait(30) == 0
    assert (tmp_path / "file").read_text() == "checkpoint"
    if number != signal.SIGHUP:
        os.close(ours)


def test_a_hangup_that_is_ignored_stays_ignored(tmp_path):
    ours, theirs = pty.openpty()
    process = start(tmp_path / "file", theirs, "env", "--ignore-signal=HUP")
    os.close(theirs)
    assert b"ready" in os.read(ours, 100)
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    os.close(ours)
