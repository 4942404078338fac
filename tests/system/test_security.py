"""Nobody on the network and no other user of the machine gets into a live run. The real quickstart, real attempts."""

from __future__ import annotations

import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from asyncrl.cluster.joined_ray import lets_strangers_in
from asyncrl.commands.resume import find_checkpoint
from asyncrl.commands.scale import Address
from asyncrl.errors import ConfigError
from tests.support import stranger
from tests.support.launch import Launched, launch, quick

pytestmark = pytest.mark.system

SECRETS = {name: secrets.token_hex(20) for name in ("HF_TOKEN", "WANDB_API_KEY")}
"""The user's own, in the launcher's environment."""
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become another user")


@pytest.fixture(scope="module")
def run(runs: Path) -> Iterator[Launched]:
    """A live run, in a folder that every user can look into."""
    folder = Path(tempfile.mkdtemp(prefix="open-", dir="/tmp"))
    folder.chmod(0o755)
    if (runs / "models").is_dir():
        shutil.copytree(runs / "models", folder / "models")
    live = launch(folder, *quick(100_000, "run.eval_every=0"), variables={**os.environ, **SECRETS})
    try:
        live.wait_for_step(3)
        yield live
    finally:
        live.process.kill()
        shutil.rmtree(folder)


def processes(run: Launched) -> list[psutil.Process]:
    launcher = psutil.Process(run.process.pid)
    return [launcher, *launcher.children(recursive=True)]


def listeners(run: Launched) -> list[tuple[str, int]]:
    """Address and port of all that the run's processes listen on."""
    return sorted({tuple(one.laddr) for one in connections(run, "inet") if one.status == psutil.CONN_LISTEN})


def unix_sockets(run: Launched) -> list[str]:
    return sorted({one.laddr for one in connections(run, "unix") if one.laddr})


def connections(run: Launched, kind: str) -> list[Any]:
    found = []
    for process in processes(run):
        with suppress(psutil.NoSuchProcess):  # Ray ends a worker that nobody needs
            found += process.net_connections(kind)
    return found


def test_every_port_of_a_run_is_on_loopback_and_none_answers_from_outside(run: Launched) -> None:
    found = listeners(run)
    assert len(found) > 5
    assert {host.removeprefix("::ffff:") for host, _ in found} == {"127.0.0.1"}
    addresses = [one.address for many in psutil.net_if_addrs().values() for one in many if one.family == socket.AF_INET]
    outside = next((address for address in addresses if not address.startswith("127.")), None)
    if outside is None:
        pytest.skip("this machine has no address but loopback")
    for _, port in found:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((outside, port), timeout=5)


@needs_root
def test_another_user_gets_nothing_out_of_a_run_and_nothing_into_it(run: Launched) -> None:
    token_file = Path(psutil.Process(run.pid_of("replay")).environ()["RAY_AUTH_TOKEN_PATH"])
    assert token_file.is_file()
    sockets = unix_sockets(run)
    assert sockets
    for folder in (run.run_dir, token_file.parent):
        attack = {
            "addresses": [("127.0.0.1", port) for _, port in listeners(run)],
            "folder": str(folder),
            "unix_sockets": sockets,
            "uid": pwd.getpwnam("nobody").pw_uid,
        }
        command = [sys.executable, stranger.__file__, json.dumps(attack)]
        attempt = subprocess.run(command, capture_output=True, text=True, timeout=2 * stranger.DEADLINE_S)
        assert attempt.returncode == 0, attempt.stderr
        assert not any(json.loads(attempt.stdout).values()), attempt.stdout
    run.wait_for_more_steps(2)
    run.wait_until(lambda: float(run.rows()[-1]["queue/peers_refused"]) > 0, "refused peers")  # type: ignore[arg-type]


def test_the_attempts_of_the_test_before_would_succeed_on_what_is_open(run: Launched) -> None:
    sockets = unix_sockets(run)
    assert any(stranger.unix_socket_opens(path) for path in sockets)  # as the user of the run
    assert stranger.readable(run.run_dir)


def test_ray_answers_nobody_without_the_runs_token(run: Launched) -> None:
    gcs = next(process for process in processes(run) if process.name() == "gcs_server")
    port = next(one.laddr.port for one in gcs.net_connections("inet") if one.status == psutil.CONN_LISTEN)
    assert not lets_strangers_in(f"127.0.0.1:{port}")


def test_no_secret_is_in_a_file_of_the_run_or_of_its_ray_or_in_a_command_line(run: Launched) -> None:
    token_file = Path(psutil.Process(run.pid_of("replay")).environ()["RAY_AUTH_TOKEN_PATH"])
    control_file = run.run_dir / "control.json"
    keys = msgspec.json.decode(control_file.read_bytes(), type=Address).keys
    assert keys is not None
    assert keys.server_secret == b""  # `asyncrl scale` needs the client's part alone
    of_the_run = [token_file.read_bytes(), keys.client_secret, keys.server_public]
    hidden = [*of_the_run, *(secret.encode() for secret in SECRETS.values())]
    contents: dict[Path, bytes] = {}
    for file in (file for folder in (run.run_dir, token_file.parent / "ray") for file in folder.rglob("*")):
        with suppress(FileNotFoundError):  # the run goes on
            if file.is_file() and file != control_file:
                contents[file] = file.read_bytes()
    names = {file.name for file in contents}
    assert {"config.yaml", "metrics.jsonl", "ledger.sqlite", "learner-0.log"} < names
    assert any("tfevents" in name for name in names)
    command_lines: list[str] = []
    for process in processes(run):
        with suppress(psutil.NoSuchProcess):
            command_lines.append("\0".join(process.cmdline()))
    for secret in hidden:
        assert not [file for file, content in contents.items() if secret in content]
        assert not [line for line in command_lines if secret in line.encode()]


def test_when_the_token_is_lost_the_next_start_says_so_and_the_folder_of_ray_goes_with_the_run(run: Launched) -> None:
    token_file = Path(psutil.Process(run.pid_of("replay")).environ()["RAY_AUTH_TOKEN_PATH"])
    token_file.unlink()
    os.kill(run.pid_of("generator-0"), signal.SIGKILL)
    assert run.wait() == 1, run.output
    assert "the token of the run's Ray is gone" in run.output
    assert not token_file.parent.exists()


@needs_root
def test_a_run_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    os.chown(tmp_path, pwd.getpwnam("nobody").pw_uid, -1)
    with pytest.raises(ConfigError, match="belongs to another user"):
        find_checkpoint(tmp_path)


def test_a_run_directory_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    tmp_path.chmod(0o777)
    with pytest.raises(ConfigError, match="others may write to it"):
        find_checkpoint(tmp_path)
