"""What learner 0 gathers is what the ranks hold, bit for bit."""

from __future__ import annotations

from asyncrl.errors import SelftestError
from asyncrl.selftest.result import Check, Figures
from asyncrl.selftest.system import System


def run(system: System) -> Figures:
    figures = system.publish()
    wrong = system.on_learners("compare_gathered")[0]
    if wrong:
        raise SelftestError(f"{len(wrong)} parameters were gathered other than the ranks hold them, such as {wrong[0]}")
    return {"learner_ranks": len(system.learners), "received_bytes": figures["publish/bytes"]}


CHECK = Check(
    "gather",
    run,
    "Report it with selftest.json: the learner's sharding and its gathering disagree. Until it is mended, "
    "learner.count=1 avoids gathering.",
)
