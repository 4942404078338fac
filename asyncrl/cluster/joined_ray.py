"""Joining a Ray that is running already: with its token, or knowingly without."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import Any

import ray

from asyncrl.errors import ConfigError

PROBE_TIMEOUT_S = 5.0
STRANGER_TIMEOUT_S = 30.0

STRANGER = "import sys; from ray._raylet import GcsClient; GcsClient(address=sys.argv[1]).internal_kv_keys(b'', None)"
"""Reads from a cluster, as who has no token."""


def join(address: str, allow_open: bool, options: dict[str, Any]) -> None:
    """Connects to a running cluster; probes it first, since Ray ends this process when nobody answers there.

    Raises:
        ConfigError: no cluster answers, it asks for another token, or it asks for none.
    """
    host, _, port = address.rpartition(":")
    try:
        if port.isdigit():
            socket.create_connection((host, int(port)), timeout=PROBE_TIMEOUT_S).close()
        ray.init(address=address, **options)
    except ray.exceptions.AuthenticationError as error:
        raise ConfigError(
            f"cluster.ray_address={address}: Ray's token is missing or is not the cluster's: {error.message}. "
            "RAY_AUTH_TOKEN_PATH names the file that has it"
        ) from error
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cluster.ray_address={address}: no Ray cluster answers there: {error}. One that asks for a token needs "
            "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH here"
        ) from error
    if not allow_open and lets_strangers_in(ray.get_runtime_context().gcs_address):
        ray.shutdown()
        raise ConfigError(
            f"cluster.ray_address={address}: this Ray answers without a token, so whoever reaches its ports can run "
            "code as you. Start it with RAY_AUTH_MODE=token, or set cluster.allow_open_ray=true"
        )


def lets_strangers_in(gcs_address: str) -> bool:
    """Asks in a process of its own, because Ray reads its token once per process."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH_")}
    environment["RAY_AUTH_MODE"] = "disabled"
    try:
        asked = subprocess.run(
            [sys.executable, "-c", STRANGER, gcs_address],
            env=environment,
            capture_output=True,
            timeout=STRANGER_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return asked.returncode == 0
