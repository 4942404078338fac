"""A request whose task is cancelled leaves the engine, and costs those that come after nothing.

Work is counted in CPU seconds of the engine's processes: unlike time, it is the same on a busy machine.
"""

from __future__ import annotations

from asyncrl.errors import SelftestError
from asyncrl.selftest.agreement import require_agreement
from asyncrl.selftest.result import Check, Figures
from asyncrl.selftest.system import Part, Request, Sampled, System, wait

MOST_REQUESTS = 128
PROMPT_TOKENS = 8
NUM_ROUNDS = 6
"""So many times what the engine decodes together is cancelled; were it answered, others would wait so much longer."""
MOST_TIMES = 3.0
CANCEL_AFTER_S = 0.05
NUM_TRIES = 3


def run(system: System) -> Figures:
    figures: Figures = {}
    system.publish()
    for generator in system.generators:
        figures |= _require_room(system, generator)
    return figures


def _require_room(system: System, generator: Part) -> Figures:
    size = min(system.max_num_sequences, MOST_REQUESTS)
    wave = [Request(system.prompt(4000 + n, PROMPT_TOKENS), system.sampling(1, seed=n)) for n in range(size)]
    to_cancel = [wave[n % size] for n in range(NUM_ROUNDS * system.max_num_sequences)]
    usual_s = min(_answered(system, generator, wave)[0] for _ in range(2))
    limit_s = 3 * system.config.publish.timeout_s + system.config.replay.lease_timeout_s
    for _ in range(NUM_TRIES):
        cancelled = generator.call("cancel", to_cancel, CANCEL_AFTER_S)
        num_running = wait(cancelled, limit_s, f"{generator.name} to cancel requests")
        if num_running:
            raise SelftestError(f"{generator.name}: {num_running} requests went on after they had been cancelled")
        after_s, sampled = _answered(system, generator, wave)
        require_agreement(system, sampled, system.version, 1.0, f"{generator.name}, after cancelled requests")
        if after_s <= MOST_TIMES * usual_s:
            return {f"{generator.name} usual_cpu_s": usual_s, f"{generator.name} after_cpu_s": after_s}
    raise SelftestError(
        f"{generator.name}: {size} requests took {usual_s:.2g} CPU s, and {after_s:.2g} after {len(to_cancel)} others "
        "had been cancelled: it goes on with those"
    )


def _answered(system: System, generator: Part, requests: list[Request]) -> tuple[float, list[Sampled]]:
    """The CPU seconds that all of them took together."""
    limit_s = system.config.publish.timeout_s
    before_s = wait(generator.call("cpu_s"), limit_s, f"{generator.name} to say what it has computed")
    sampled = system.sample_together(generator, requests)
    return wait(generator.call("cpu_s"), limit_s, f"{generator.name} to say what it has computed") - before_s, sampled


CHECK = Check(
    "cancelled requests",
    run,
    "Completions of leases that have run out (replay.lease_timeout_s) would take room from those that replace them. An "
    "engine's `sample` has to abort its request when its task is cancelled.",
)
