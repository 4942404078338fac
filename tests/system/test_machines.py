"""A run over two machines, and a third one that tries to get in. Network namespaces stand for the machines."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from asyncrl.cluster.joined_ray import STRANGER
from tests.support import stranger
from tests.support.launch import STAND_IN, assert_exact, launch, quick, role_processes
from tests.support.machines import INTERFACE, Machine, NoMachinesError, machines

pytestmark = pytest.mark.system

GCS_PORT = 6379
RAY_START = ["-m", "ray.scripts.scripts", "start", "--num-cpus=2", "--object-store-memory=130000000"]
PARTS = ("launcher", "replay", "generator-0", "learner-0")


@pytest.fixture
def network() -> Iterator[list[Machine]]:
    try:
        with machines(3) as three:
            yield three
    except NoMachinesError as error:
        pytest.skip(str(error))


@pytest.fixture
def ray_variables() -> Iterator[dict[str, str]]:
    """With a token; Ray's files are in a folder of their own."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short, since the paths of Unix sockets are
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    ray = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}
    ray["RAY_worker_niceness"] = "0"  # else whatever else the machine does starves the roles
    yield {**os.environ, **ray, "RAY_TMPDIR": str(folder)}
    shutil.rmtree(folder, ignore_errors=True)


def start_ray(head: Machine, other: Machine, variables: dict[str, str]) -> str:
    """A cluster of both; returns its address."""
    address = f"{head.address}:{GCS_PORT}"
    for machine, arguments in (
        (head, ["--head", f"--port={GCS_PORT}", "--include-dashboard=false"]),
        (other, [f"--address={address}"]),
    ):
        command = machine.command(sys.executable, *RAY_START, f"--node-ip-address={machine.address}", *arguments)
        subprocess.run(command, env=variables, capture_output=True, timeout=120, check=True)
    return address


def who_gets_into_ray(machine: Machine, address: str, variables: dict[str, str]) -> dict[str, bool]:
    """With the cluster's token, with another, without; all at once."""
    token = {name: variables[name] for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")}
    attempts = {
        "the token": token,
        "another token": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)},
        "no token": {"RAY_AUTH_MODE": "disabled"},
    }
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = machine.command(sys.executable, "-c", STRANGER, address)
    trying = {
        name: subprocess.Popen(command, env={**clean, **ray}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for name, ray in attempts.items()
    }
    return {name: process.wait(60) == 0 for name, process in trying.items()}


def test_a_run_over_two_machines_lets_nobody_in_from_a_third(
    network: list[Machine], ray_variables: dict[str, str], runs: Path
) -> None:
    first, second, third = network
    address = start_ray(first, second, ray_variables)
    settings = [f"cluster.ray_address={address}", f"cluster.interface={INTERFACE}", "run.eval_every=0", STAND_IN]
    run = launch(runs, *quick(100_000, *settings), name="machines", variables=ray_variables, on=first.command())
    run.wait_for_step(2)
    assert run.pid_of("generator-0") in first.pids()
    assert run.pid_of("learner-0") in second.pids()  # so weights and batches go from machine to machine

    assert who_gets_into_ray(third, address, ray_variables) == {
        "the token": True,
        "another token": False,
        "no token": False,
    }
    ours = {process.pid for process in role_processes(run)} | {run.process.pid, run.pid_of("replay")}
    listeners = [(machine, one) for machine in (first, second) for one in machine.listeners() if one.pid in ours]
    ray_workers = [one for _, one in listeners if one.host == "*"]
    assert len(ray_workers) == len(PARTS), "who but Ray's own server in each binds all interfaces?"
    assert {one.host for machine, one in listeners if one.host != "*"} == {first.address, second.address}
    assert all(one.host in ("*", machine.address) for machine, one in listeners)
    attack = {
        "addresses": [(machine.address, one.port) for machine, one in listeners],
        "folder": None,
        "unix_sockets": [],
        "uid": None,
    }
    command = third.command(sys.executable, stranger.__file__, json.dumps(attack))
    attempt = subprocess.run(command, capture_output=True, text=True, timeout=2 * stranger.DEADLINE_S, check=False)
    assert attempt.returncode == 0, attempt.stderr
    assert not any(json.loads(attempt.stdout).values()), attempt.stdout

    step = len(run.rows())
    run.wait_until(lambda: len(run.rows()) > step + 2, "steps after the attack")
    assert float(run.rows()[-1]["queue/peers_refused"]) > 0  # type: ignore[arg-type]
    for name in ("launcher", "generator-0"):
        log = run.run_dir / "logs" / f"{name}.log"
        run.wait_until(lambda log=log: "peers without the run's keys" in log.read_text(), f"the count of {name}")
    run.process.send_signal(signal.SIGINT)
    assert run.wait() == 130, run.output
    assert_exact(run, len(run.rows()))
