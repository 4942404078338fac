"""How `asyncrl scale` reaches a launcher: real sockets, a real address file."""

import threading
from pathlib import Path

import msgspec
import pytest

from asyncrl.commands import scale as scaling
from asyncrl.commands.scale import scale, write_address
from asyncrl.errors import ConfigError, DeadlineError
from asyncrl.transport.control_server import ControlServer
from asyncrl.transport.messages.publishing import Failed
from asyncrl.transport.messages.scaling import Scale, Scaled
from asyncrl.transport.sockets import Keys, Network


def asked(run_dir: Path, network: Network, answer: Scaled | Failed) -> tuple[str, Scale]:
    """Lets a launcher that listens on `network` answer one request; returns the outcome and the request."""
    control = ControlServer(network, ["replay"])
    write_address(run_dir, control.endpoint, network.keys)
    outcome: list[str] = []

    def ask() -> None:
        try:
            outcome.append(scale(run_dir, 3))
        except ConfigError as error:
            outcome.append(f"refused: {error}")

    thread = threading.Thread(target=ask)
    thread.start()
    while not control.requests:
        control.receive(100)
    sender, request = control.requests.popleft()
    control.send(sender, answer)
    thread.join(20.0)
    control.close()
    return outcome[0], request


@pytest.mark.parametrize("keys", [None, Keys.generate()], ids=["clear", "curve"])
def test_the_launcher_of_a_run_is_asked_and_its_answer_told(tmp_path, keys):
    assert asked(tmp_path, Network(keys=keys), Scaled("1 → 3")) == ("1 → 3", Scale(3))
    assert asked(tmp_path, Network(keys=keys), Failed("no room")) == ("refused: no room", Scale(3))


def test_the_address_is_private_and_lacks_the_servers_secret(tmp_path):
    keys = Keys.generate()
    file = write_address(tmp_path, "tcp://127.0.0.1:1", keys)
    assert file.stat().st_mode & 0o077 == 0
    assert msgspec.json.encode(keys.client_secret) in file.read_bytes()
    assert msgspec.json.encode(keys.server_secret) not in file.read_bytes()


def test_a_directory_without_a_live_run_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"no run is live there \(it has no control.json\)"):
        scale(tmp_path, 2)


def test_a_launcher_that_is_gone_is_a_deadline_error_that_names_its_file(tmp_path, monkeypatch):
    monkeypatch.setattr(scaling, "ANSWER_TIMEOUT_S", 0.2)
    write_address(tmp_path, "tcp://127.0.0.1:1", None)
    with pytest.raises(DeadlineError, match=r"the launcher that wrote .*control.json should have come"):
        scale(tmp_path, 2)
