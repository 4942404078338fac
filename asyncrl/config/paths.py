"""The files that a configuration names, by their whole paths."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from asyncrl.config.data import MIXTURE, TEMPLATE_CHOICES
from asyncrl.config.engines import engine_names
from asyncrl.config.schema import Config
from asyncrl.config.user_code import is_file_name


def with_absolute_paths(config: Config) -> Config:
    """What exists here by a relative name is named by its whole path, so that the run can be resumed from anywhere.

    A name of something else stays: a hub name, a module, `arithmetic`, `tiny`.
    """
    template = config.data.chat_template
    data = replace(
        config.data,
        train=_absolute(config.data.train),
        eval=None if config.data.eval is None else _absolute(config.data.eval),
        chat_template=template if template in TEMPLATE_CHOICES else _absolute(template),
        mixture=[
            replace(each, path=_absolute(each.path), eval=None if each.eval is None else _absolute(each.eval))
            for each in config.data.mixture
        ],
    )
    terms = [replace(term, function=_absolute_function(term.function)) for term in config.reward.terms]
    return replace(
        config,
        model=replace(config.model, path=_absolute(config.model.path)),
        data=data,
        environment=replace(config.environment, name=_absolute_environment(config.environment.name)),
        reward=replace(config.reward, terms=terms),
        generator=replace(config.generator, engine=",".join(map(_absolute_function, engine_names(config.generator)))),
        run=replace(config.run, dir=str(Path(config.run.dir).absolute())),
    )


def _absolute(name: str) -> str:
    path = Path(name)
    return (
        str(path.absolute()) if name not in ("tiny", "arithmetic", "environment", MIXTURE) and path.exists() else name
    )


def _absolute_function(name: str) -> str:
    origin, separator, function = name.rpartition(":")
    return f"{_absolute(origin)}{separator}{function}" if is_file_name(origin) else name


def _absolute_environment(name: str | None) -> str | None:
    """`file.py:Class`, or a file after the kind of an adapter: `verifiers:file.py`."""
    if name is None:
        return None
    kind, separator, rest = name.partition(":")
    return f"{kind}:{_absolute(rest)}" if separator and is_file_name(rest) else _absolute_function(name)
