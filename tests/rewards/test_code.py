"""The reward `code`, with programs that mean harm: each ends at a limit, and nothing outside notices."""

from __future__ import annotations

import asyncio
import http.server
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from asyncrl.config.schema import RewardTerm
from asyncrl.errors import ConfigError
from asyncrl.rewards.code import Code, program_in
from asyncrl.rewards.functions import resolve
from asyncrl.rewards.pool import RewardPool
from asyncrl.rewards.sandbox.run import Ended, Limits, check_sandbox, run
from asyncrl.rewards.worker import RewardFailure, Score

FENCE = "```"


@pytest.fixture(scope="module", autouse=True)
def sandboxed() -> None:
    try:
        check_sandbox(isolated=True)
    except ConfigError as error:
        pytest.skip(f"no sandbox here: {error}")


def ended(program: str, **limits: Any) -> Ended:
    return run(program, "", Limits(**{"time_s": 20.0, **limits}))


def test_the_program_is_the_last_fenced_block_or_all() -> None:
    assert program_in(f"So:\n{FENCE}python\nx = 1\n{FENCE}\nor\n{FENCE}\ny = 2\n{FENCE}\n") == "y = 2\n"
    assert program_in("x = 1") == "x = 1"


@pytest.mark.parametrize(
    ("completion", "answer", "due"),
    [
        (f"{FENCE}python\ndef double(x):\n    return 2 * x\n{FENCE}", "assert double(2) == 4", 1.0),
        ("def double(x):\n    return 2 + x", "assert double(3) == 6", 0.0),
        ("import sys, os\nsys.exit(0)", "assert False", 0.0),
        ("import os\nos._exit(0)", "assert False", 0.0),
        ("def double(x:", "pass", 0.0),
        ("print(int(input()) * 2)", [{"input": "2\n", "output": "4"}, {"input": "3", "output": "6 \n"}], 1.0),
        ("print(4)", {"inputs": ["2", "3"], "outputs": ["4", "6"]}, 0.0),
        ("print(4)\nraise SystemExit(1)", [{"input": "", "output": "4"}], 0.0),
    ],
)
def test_a_program_passes_that_does_what_the_answer_says(completion: str, answer: Any, due: float) -> None:
    assert Code(time_s=20.0)(completion, answer) == due


@pytest.mark.parametrize(
    ("program", "limits", "reason"),
    [
        ("while True: pass", {"time_s": 0.5}, "took longer than 0.5 s"),
        ("import os\nwhile True: os.fork()", {}, "more than 16 processes"),
        ("while True: print('x' * 1000)", {}, "more than 1,048,576 bytes"),
        ("x = bytearray(4 << 30)", {}, "MemoryError"),
        ("f = open('f', 'wb')\nwhile True: f.write(bytes(1 << 20))", {"file_bytes": 4 << 20}, "Errno"),
        ("while True: open(str(id(object())) + str(len(__import__('os').listdir())), 'wb').write(bytes(1 << 20))",
         {"file_bytes": 4 << 20}, "No space left"),
    ],
)  # fmt: skip
def test_a_program_that_takes_too_much_is_ended(program: str, limits: dict[str, Any], reason: str) -> None:
    outcome = ended(program, **limits)
    assert outcome.exit_code != 0
    assert reason in outcome.reason


def test_what_a_program_leaves_behind_is_ended_with_it() -> None:
    before = {process.pid for process in psutil.process_iter()}
    program = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(77)\n"
    assert ended(program).exit_code in (0, None)
    deadline = time.monotonic() + 10
    while any(one.pid not in before and "program.py" in _command(one) for one in psutil.process_iter()):
        assert time.monotonic() < deadline, "a process lives on"
        time.sleep(0.05)


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@pytest.fixture
def port() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


def test_there_is_no_network_not_even_to_this_machine(port: int) -> None:
    program = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 5)\nprint('through')"
    assert "Error" in ended(program).reason
    assert ended(program, isolated=False).output == "through\n"


def test_nothing_is_written_killed_or_seen_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "s3cret")
    victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    package = Path(__file__).parent / "stray.txt"
    program = f"""
import os
for path in [{str(tmp_path / "x")!r}, {str(package)!r}, os.path.expanduser("~/../x"), "/etc/x"]:
    try:
        open(path, "w")
        print("wrote", path)
    except OSError: pass
for pid in [{victim.pid}, {os.getpid()}]:
    try:
        os.kill(pid, 9)
        print("killed", pid)
    except OSError: pass
print(os.listdir("/proc"), "SECRET" in os.environ)
open("mine", "w").write("x")
open("/dev/null", "w").write("x")
print(os.listdir("."))
"""
    try:
        assert ended(program).output == "[] False\n['mine', 'program.py']\n" or ended(program).output == (
            "[] False\n['program.py', 'mine']\n"
        )
        assert victim.poll() is None
    finally:
        victim.kill()
        victim.wait()
    assert not (tmp_path / "x").exists()
    assert not package.exists()


def test_programs_that_never_end_are_wrong_answers_in_a_pool_and_cases_that_are_none_are_failures() -> None:
    pool = RewardPool([RewardTerm("code", args={"time_s": 30.0})], num_workers=1, time_limit_s=2.0)

    async def score() -> list[Any]:
        right = await pool.score("", ["print(4)"], "4", '{"answer": [{"input": "", "output": "4"}]}')
        endless = await pool.score("", ["while True: pass"], "pass")
        return [*right, *endless, *await pool.score("", ["x"], "", '{"answer": [{"in": ""}]}')]

    try:
        right, endless, failed = asyncio.run(score())
    finally:
        pool.close()
    assert (right, endless) == (Score(1.0, correct=True), Score(0.0, correct=False))
    assert isinstance(failed, RewardFailure)
    assert "neither a test as text nor cases" in failed.reason


@pytest.mark.parametrize(
    ("args", "message"),
    [({"memory": 1}, "unexpected keyword argument 'memory'"), ({"time_s": 0}, "time_s=0 must be a number above 0")],
)
def test_limits_that_cannot_be_are_refused(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"reward.terms: code: args: .*{message}"):
        resolve(RewardTerm("code", args=args))
