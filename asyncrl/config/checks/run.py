"""The sections `run` and `reward`: what an evaluation and a reward need."""

from __future__ import annotations

from asyncrl.config.schema import Config


def run_problems(config: Config) -> list[str]:
    problems = []
    if config.run.eval_every > 0 and config.data.eval is None:
        problems.append(f"run.eval_every={config.run.eval_every} needs data.eval; set it, or run.eval_every=0")
    if not config.reward.terms:
        problems.append("reward.terms is empty; name at least one function, such as numeric")
    return problems
