"""Every engine closes in time, although requests were in it until now."""

from __future__ import annotations

import time

from asyncrl.selftest.result import Check, Figures
from asyncrl.selftest.system import System, wait

NUM_REQUESTS = 8


def run(system: System) -> Figures:
    figures: Figures = {}
    for generator in system.generators:
        for number in range(NUM_REQUESTS):
            system.submit(generator, system.prompt(5000 + number, 8), system.sampling(1))
        start_s = time.monotonic()
        limit_s = system.config.run.stop_timeout_s
        wait(generator.call("stop"), 2 * limit_s, f"{generator.name} to close its engine")
        figures[f"{generator.name} closed_s"] = time.monotonic() - start_s
    return figures


CHECK = Check(
    "closing",
    run,
    "A run would end only by force, run.stop_timeout_s after its last step. Read the generator's log in the selftest's "
    "folder: what does the engine wait for?",
)
