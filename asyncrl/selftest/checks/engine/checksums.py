"""A changed bit on the way is noticed, mended by a second try, and never served."""

from __future__ import annotations

from asyncrl.errors import PublishError, SelftestError
from asyncrl.selftest.agreement import require_agreement
from asyncrl.selftest.result import Check, Figures
from asyncrl.selftest.system import System

EVERY = 1 << 30


def run(system: System) -> Figures:
    once = system.publish(num_damaged=1)
    for generator in system.generators:
        sampled = system.sample(generator, [system.prompt(3, 8)], system.sampling(4))
        require_agreement(system, sampled, system.version, 1.0, f"{generator.name}, after a damaged bucket")
    try:
        system.publish(num_damaged=EVERY)
    except PublishError as error:
        if "bucket" not in str(error):
            raise
    else:
        raise SelftestError(f"version {system.version} was served although every bucket of it came with a changed bit")
    system.publish()
    return {"damaged_once_s": once["time/publish_s"]}


CHECK = Check(
    "checksums",
    run,
    "Do not train: weights that were damaged on their way would be served. Report it with selftest.json.",
)
