"""asyncrl: an asynchronous off-policy actor-learner for LLM reinforcement learning.

    dataset ─▶ ledger ──lease──▶ generator ──group──▶ replay ──batch──▶ learner ──▶ checkpoint
                 ▲                vLLM, TP k            │                FSDP2        TensorBoard
                 │                rewards               │                  │
                 └────────── admission: v, η, B ────────┘                  │
                                  ▲                                        │
                                  └───────────── publish v+1 ──────────────┘

Data flows one way; the only thing that flows back is a policy version with its weights. docs/design.md gives the
reading order, docs/api.md describes the names below. Each is imported when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asyncrl.api.launch import launch
    from asyncrl.api.run import Run
    from asyncrl.config.load import load as load_config
    from asyncrl.config.schema import Config
    from asyncrl.evaluation.evaluate import evaluate

__all__ = ["Config", "Run", "evaluate", "launch", "load_config"]

_HOMES = {
    "Config": ("asyncrl.config.schema", "Config"),
    "Run": ("asyncrl.api.run", "Run"),
    "evaluate": ("asyncrl.evaluation.evaluate", "evaluate"),
    "launch": ("asyncrl.api.launch", "launch"),
    "load_config": ("asyncrl.config.load", "load"),
}
"""Exported name → (module, attribute)."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'asyncrl' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(importlib.import_module(module), attribute)
