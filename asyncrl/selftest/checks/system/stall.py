"""How long a publish takes while requests decode, and for how much of it they stand still."""

from __future__ import annotations

from contextlib import ExitStack

from asyncrl.errors import SelftestError
from asyncrl.selftest.load import Load
from asyncrl.selftest.result import Check, Figures
from asyncrl.selftest.system import System

MOST_STALL_SHARE = 0.5
MARGIN_S = 0.5


def run(system: System) -> Figures:
    with ExitStack() as stack:
        loads = [stack.enter_context(Load(system, generator)) for generator in system.generators]
        published = system.publish(kv_cache=system.config.publish.kv_cache)
    num_requests = sum(len(load.sampled()) for load in loads)
    publish_s, stall_s = published["time/publish_s"], published["time/publish_stall_s"]
    if system.config.publish.staged and stall_s > MARGIN_S + MOST_STALL_SHARE * publish_s:
        raise SelftestError(f"generation stood still for {stall_s:.2f} s of a staged publish of {publish_s:.2f} s")
    return {
        "publish_s": publish_s,
        "stall_s": stall_s,
        "received_bytes": published["publish/bytes"],
        "requests_in_flight": num_requests,
    }


CHECK = Check(
    "stall",
    run,
    "Weights should come while generation goes on. Look at the links check, and whether host memory is short (a worker "
    "keeps a second copy of its slices there).",
)
