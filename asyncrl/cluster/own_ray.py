"""A Ray of the run's own on this machine: it listens on loopback alone, and answers nobody without the run's token.

Its token, sockets and logs lie in a folder that only the user can open.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._private import node, parameter, ray_constants

from asyncrl.errors import RunError
from asyncrl.transport.sockets import LOOPBACK

OBJECT_STORE_BYTES = 128 << 20
"""Rollouts and weights do not go through Ray; this is about the least it accepts."""

RAY_SETTINGS = {
    "kill_worker_timeout_milliseconds": 500,
    "worker_niceness": 0,
    "enable_worker_prestart": False,
    "worker_maximum_startup_concurrency": 64,
}
"""How long a process that is to be killed may take to answer Ray before it gets SIGKILL. A frozen one never answers.
Ray's default is 5 s; meanwhile a publish waits for the frozen generator, and new learners wait for the old. With Ray's
default niceness of 15, any other program on the machine would starve the roles. A run starts its few roles all at once
and nothing else: no process is made for tasks to come, and no role waits until others have come up. A cluster that is
joined has its own settings."""


class OwnRay:
    """Started by the constructor; `shutdown` ends it and removes what it left.

    Args:
        options: of `ray.init`.
        variables: the environment of all processes that it starts.
    """

    def __init__(self, options: dict[str, Any], variables: Mapping[str, str]) -> None:
        # Short, because a Unix socket's path has at most 107 bytes. Ray opens its own folder to everybody, so it gets
        # one inside of this, which stays closed (mode 0700).
        self._folder = Path(tempfile.mkdtemp(prefix="asyncrl-", dir=os.environ.get("RAY_TMPDIR", "/tmp")))
        self._token_file = self._folder / "token"
        _write_private(self._token_file, secrets.token_hex(32))
        _ask_for_token(self._token_file)
        _stay_on_loopback()
        # vLLM's sockets go where they are removed with the rest: it leaves them in /tmp when its process is killed.
        self.variables = {**variables, "VLLM_RPC_BASE_PATH": str(self._folder)}
        with _environment(self.variables), _alone():
            ray.init(
                address="local",
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=False,
                _system_config=RAY_SETTINGS,
                _temp_dir=str(self._folder / "ray"),
                **options,
            )
        assert {node["NodeManagerAddress"] for node in ray.nodes()} == {LOOPBACK}, "Ray has left loopback"

    def require_token(self) -> None:
        """A process that is to start reads the token; without it Ray would wait for that process for ever.

        Raises:
            RunError: the file is gone.
        """
        if not self._token_file.is_file():
            raise RunError(
                f"{self._token_file}: the token of the run's Ray is gone, so no process can be started; "
                "go on with --resume, which makes a new one"
            )

    def shutdown(self) -> None:
        ray.shutdown()
        shutil.rmtree(self._folder, ignore_errors=True)


def _write_private(file: Path, text: str) -> None:
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        stream.write(text)


def _ask_for_token(file: Path) -> None:
    """This process and all that it starts read the token there. Ray 2.60 asks for one in each cluster that it starts,
    unless RAY_AUTH_MODE says otherwise, and takes RAY_AUTH_TOKEN before the file."""
    os.environ.pop("RAY_AUTH_MODE", None)
    os.environ.pop("RAY_AUTH_TOKEN", None)
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(file)


def _stay_on_loopback() -> None:
    """Gives Ray's node the address 127.0.0.1; then GCS, raylet, workers and agents listen there alone.

    Ray takes that address on macOS and Windows. On Linux it replaces even `_node_ip_address="127.0.0.1"` with the
    machine's address on the network. Expires when `ray.init` takes a loopback address on Linux.
    """
    ray_constants.ENABLE_RAY_CLUSTER = False


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Of the processes that are started inside: Ray's, and theirs."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _alone() -> Iterator[None]:
    """Ray starts without the three programs that it puts beside each head node, for which a run on one machine has no
    use: the autoscaler's monitor, whose figures every user of the machine could read, the log monitor, and the
    dashboard, which runs for usage statistics when it is off. They take seconds to start. Expires when `ray.init` can
    leave them out (Ray 2.60 cannot).
    """
    params, start_api_server = parameter.RayParams, node.Node.start_api_server

    class Params(params):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **{**settings, "no_monitor": True, "include_log_monitor": False})

    parameter.RayParams = Params
    node.Node.start_api_server = lambda self, **settings: None
    try:
        yield
    finally:
        parameter.RayParams, node.Node.start_api_server = params, start_api_server
