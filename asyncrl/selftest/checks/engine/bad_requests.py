"""A request that cannot be answered is refused by itself: the engine and the requests beside it go on."""

from __future__ import annotations

from asyncrl.cluster.roles import engine_spec
from asyncrl.errors import RunError, SelftestError
from asyncrl.selftest.agreement import require_agreement
from asyncrl.selftest.result import Check, Figures
from asyncrl.selftest.system import Part, Request, Sampled, System, wait

NUM_BESIDE = 8
NO_TOKEN = (1 << 31) - 1


def run(system: System) -> Figures:
    system.publish()
    prompts = _bad_prompts(system)
    for generator in system.generators:
        beside = [system.prompt(3000 + number, 8) for number in range(NUM_BESIDE)]
        good = [system.submit(generator, prompt, system.sampling(1, seed=0)) for prompt in beside]
        for what, prompt in prompts.items():
            _require_refusal(system, generator, what, prompt)
        limit_s = system.config.replay.lease_timeout_s
        answers = [wait(future, limit_s, f"{generator.name}, whose engine was asked something else") for future in good]
        after = system.sample(generator, beside, system.sampling(1, seed=1))
        sampled = [*map(Sampled, beside, answers), *after]
        require_agreement(system, sampled, system.version, 1.0, f"{generator.name}, beside bad requests")
    return {"refused": len(prompts)}


def _bad_prompts(system: System) -> dict[str, list[int]]:
    too_long = engine_spec(system.config, system.on_cpu).max_model_len + 1
    return {
        f"a prompt of {too_long} tokens, one more than EngineSpec.max_model_len": [system.prompt(0, 1)[0]] * too_long,
        f"a prompt with the token {NO_TOKEN}, which no vocabulary has": [*system.prompt(0, 3), NO_TOKEN],
        "a prompt without a token": [],
    }


def _require_refusal(system: System, generator: Part, what: str, prompt: list[int]) -> None:
    asked = generator.call("refusal", Request(prompt, system.sampling(1)))
    error: str | None = wait(asked, system.config.replay.lease_timeout_s, f"{generator.name} to refuse {what}")
    if error is None:
        raise SelftestError(f"{generator.name} answered {what}")
    if not error.startswith(f"{RunError.__name__}:"):
        raise SelftestError(
            f"{generator.name}: {what} ended in {error:.200}. It has to be a RunError, which costs a run one prompt; "
            "another error ends the generator"
        )


CHECK = Check(
    "bad requests",
    run,
    "One prompt could end a generator again and again. An engine's `sample` has to look at the prompt before it hands "
    "it on, and to raise asyncrl.errors.RunError with the reason.",
)
