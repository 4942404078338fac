"""An engine that never comes up."""

from __future__ import annotations

from bench.standin.engine import StandInEngine


class BrokenEngine(StandInEngine):
    def __init__(self, *args: object) -> None:
        raise OSError("no such accelerator")
