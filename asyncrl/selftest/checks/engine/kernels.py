"""Which kernels compute attention and sampling, at the learner and in the engine."""

from __future__ import annotations

from itertools import product

from asyncrl.errors import SelftestError
from asyncrl.selftest.result import Check, Figures
from asyncrl.selftest.system import System, wait


def run(system: System) -> Figures:
    figures: Figures = {}
    for part in [*system.learners[:1], *system.generators]:
        found = wait(part.call("kernels"), system.config.publish.timeout_s, f"{part.name} to name its kernels")
        figures |= {f"{part.name} {what}": name for what, name in found.items()}
    for part, what in product(system.generators, ("attention", "sampling")):
        if not figures.get(f"{part.name} {what}"):
            raise SelftestError(f"{part.name} does not say what computes {what} (Engine.kernels)")
    dtype = figures[f"{system.learners[0].name} dtype"]
    if dtype != system.config.model.dtype:
        raise SelftestError(f"the learner computes in {dtype}, and model.dtype is {system.config.model.dtype}")
    if not system.on_cpu and figures[f"{system.learners[0].name} attention"] == "eager":
        raise SelftestError("the learner computes attention in eager mode, which holds every score matrix")
    return figures


CHECK = Check(
    "kernels",
    run,
    "Set model.attention (flash_attention_2 needs the package flash-attn on a GPU) and model.dtype; an engine's own "
    "choice is in its log.",
)
