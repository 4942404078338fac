"""A generator whose worker is killed is noticed by the next publish, and its successor serves what the others serve."""

from __future__ import annotations

import time
from contextlib import suppress

from asyncrl.errors import PublishError, RoleDiedError, SelftestError
from asyncrl.selftest.agreement import require_agreement
from asyncrl.selftest.result import Check, Figures, NotHereError
from asyncrl.selftest.system import Part, System, wait

LONGEST_WAIT_S = 20.0
"""publish.timeout_s of this check, if it is longer."""
POLL_S = 0.1


def run(system: System) -> Figures:
    if system.start_again is None:
        raise NotHereError("its generators cannot be started again")
    limit_s = min(LONGEST_WAIT_S, system.config.publish.timeout_s)
    victim = system.generators[-1]
    system.publish(timeout_s=limit_s)
    with suppress(RoleDiedError):  # when it killed itself
        wait(victim.call("die"), limit_s, f"a worker of {victim.name} to be killed")
    start_s = time.monotonic()
    try:
        system.publish(timeout_s=limit_s)
    except PublishError as error:
        noticed_s = time.monotonic() - start_s
        if victim.name not in str(error):
            raise SelftestError(
                f"a worker of {victim.name} was killed, and the error names another: {error}"
            ) from error
    else:
        raise SelftestError(f"a worker of {victim.name} was killed, and the next publish succeeded")
    _require_that_it_is_known(victim, limit_s)
    system.replace(victim)
    system.publish()
    for generator in system.generators:
        sampled = system.sample(generator, [system.prompt(9, 8)], system.sampling(4))
        require_agreement(system, sampled, system.version, 1.0, f"{generator.name}, after a death")
    return {"noticed_s": noticed_s, "mended_s": time.monotonic() - start_s}


def _require_that_it_is_known(victim: Part, limit_s: float) -> None:
    """A run's generator asks ten times a second whether its engine is dead, and ends when it is."""
    deadline_s = time.monotonic() + limit_s
    try:
        while not wait(victim.call("is_dead"), limit_s, f"{victim.name} to say whether its engine is dead"):
            if time.monotonic() > deadline_s:
                raise SelftestError(f"{victim.name}: a worker was killed, and {limit_s:.0f} s later `dead` is false")
            time.sleep(POLL_S)
    except RoleDiedError:
        """The whole process is gone."""


CHECK = Check(
    "deaths",
    run,
    "A run would stand still until run.heartbeat_timeout_s or publish.timeout_s. Read the generator's log in the "
    "selftest's folder; a lower publish.timeout_s shortens the wait.",
)
