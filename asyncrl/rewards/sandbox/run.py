"""Runs a program that a model wrote where it can do little (`inside.py`), and ends it with all that it started.

What it does not protect from: docs/rewards.md.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from asyncrl.errors import ConfigError

_INSIDE = Path(__file__).with_name("inside.py")
_FAILED = 97
"""Exit code of `inside.py` when it could not lock itself in."""
_POLL_S = 0.02
_MAX_OUTPUT_BYTES = 1 << 20


@dataclass(frozen=True)
class Limits:
    """Of one program."""

    time_s: float = 4.0
    memory_bytes: int = 1 << 30
    """Address space of each process."""
    file_bytes: int = 16 << 20
    """All that it writes together; without isolation, of each file."""
    max_processes: int = 16
    isolated: bool = True
    """In namespaces of its own: no network, no writing outside, no other processes."""


@dataclass(frozen=True)
class Ended:
    """How a program ended."""

    exit_code: int | None
    """None = it was killed at a limit."""
    output: str
    """Standard output."""
    reason: str
    """The limit, or the end of standard error."""


class SandboxError(Exception):
    """The machine gives no sandbox; says what was refused."""


def run(program: str, stdin: str, limits: Limits) -> Ended:
    """Runs a Python program to its end, or to a limit.

    Raises:
        SandboxError: it could not be locked in, and was not run.
    """
    with tempfile.TemporaryDirectory(prefix="asyncrl-code-") as folder, tempfile.TemporaryFile() as given:
        given.write(stdin.encode(errors="replace"))
        given.seek(0)
        reading, writing = os.pipe()
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_INSIDE), str(reading)],
            stdin=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=[reading],
            start_new_session=True,
            env={},
        )
        os.close(reading)
        try:
            with contextlib.suppress(BrokenPipeError), os.fdopen(writing, "w") as stream:
                json.dump(_job(program, folder, limits), stream)
            return _watch(process, limits)
        finally:
            _kill(process)


@cache
def check_sandbox(isolated: bool) -> None:
    """Raises ConfigError: this machine gives no sandbox; says what was refused and the way out."""
    try:
        ended = run("print(2 + 2)", "", Limits(time_s=30.0, isolated=isolated))
    except SandboxError as error:
        raise ConfigError(
            f"reward.terms: code: this machine gives no namespaces to lock programs in ({error}); allow unprivileged "
            "user namespaces, or accept programs that reach the network and your files with args.isolated=false"
        ) from error
    if ended.output != "4\n":
        raise ConfigError(f"reward.terms: code: a program of one line failed in the sandbox: {ended.reason}")


def _job(program: str, folder: str, limits: Limits) -> dict[str, object]:
    return {
        "program": program,
        "folder": folder,
        "needed": sorted({sys.prefix, sys.base_prefix, os.path.realpath(sys.executable), *filter(None, sys.path)}),
        "memory_bytes": limits.memory_bytes,
        "file_bytes": limits.file_bytes,
        "cpu_s": int(limits.time_s) + 1,
        "isolated": limits.isolated,
    }


def _watch(process: subprocess.Popen[bytes], limits: Limits) -> Ended:
    """Reads what the program writes until it ends, or until a limit."""
    assert process.stdout is not None
    assert process.stderr is not None
    written: dict[str, bytes] = {"stdout": b"", "stderr": b""}
    deadline = time.monotonic() + limits.time_s
    limit = ""
    with selectors.DefaultSelector() as streams:
        streams.register(process.stdout, selectors.EVENT_READ, "stdout")
        streams.register(process.stderr, selectors.EVENT_READ, "stderr")
        while streams.get_map() and not limit:
            for key, _ in streams.select(_POLL_S):
                chunk = os.read(key.fd, 1 << 16)
                written[key.data] += chunk
                if not chunk:
                    streams.unregister(key.fileobj)
            if time.monotonic() >= deadline:
                limit = f"it took longer than {limits.time_s:g} s"
            elif max(map(len, written.values())) > _MAX_OUTPUT_BYTES:
                limit = f"it wrote more than {_MAX_OUTPUT_BYTES:,} bytes"
            elif _num_descendants(process.pid, limits.max_processes + 1) > limits.max_processes + 1:
                limit = f"it started more than {limits.max_processes} processes"
    if not limit:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            limit = f"it took longer than {limits.time_s:g} s"
    output, errors = (text.decode(errors="replace") for text in written.values())
    if process.returncode == _FAILED and not limit:
        raise SandboxError(errors)
    return Ended(None if limit else process.returncode, output, limit or errors[-500:])


def _num_descendants(pid: int, enough: int) -> int:
    """Processes below this one; stops counting above `enough`."""
    found, num_seen = [pid], 0
    while found and num_seen <= enough:
        for file in Path(f"/proc/{found.pop()}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                children = file.read_text().split()
                num_seen += len(children)
                found += map(int, children)
    return num_seen


def _kill(process: subprocess.Popen[bytes]) -> None:
    """With all that it started: those in its session, and those of its PID namespace, which ends with its first one."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()
