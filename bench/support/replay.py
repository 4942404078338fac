"""The real replay server for a process of its own: transport.py and replay_scale.py."""

from __future__ import annotations

from pathlib import Path

import zmq

from asyncrl.config.schema import Config
from asyncrl.ledger.from_config import ledger_of
from asyncrl.ledger.store import LedgerStore
from asyncrl.replay.evaluation import Evaluation
from asyncrl.replay.server import ReplayServer
from asyncrl.transport.control_link import ControlLink
from asyncrl.transport.control_server import ControlServer
from asyncrl.transport.sockets import Network
from asyncrl.types import Prompt
from bench.support.groups import PROMPT_TOKENS

SILENCE_S = 600.0
"""Nobody speaks as the launcher here."""


def serve_replay(socket: zmq.Socket, network: Network, config: Config, num_steps: int, folder: Path) -> None:
    """Until the process is killed. Every prompt is the same; the ledger lies in `folder`."""
    store = LedgerStore(folder / "ledger.sqlite", config.replay.durability)
    control = ControlServer(network, ["replay"])
    link = ControlLink("replay", network, control.endpoint, SILENCE_S, SILENCE_S)
    prompt = Prompt(0, [1] * PROMPT_TOKENS, "", "")
    ledger = ledger_of(config, num_steps)
    ReplayServer(socket, config, lambda index: prompt, Evaluation([], config), ledger, store, link).run()
