"""`generator.engine` names one engine for all generators, or several, comma-separated: one for each in turn."""

from __future__ import annotations

from asyncrl.config.schema import GeneratorConfig


def engine_names(generator: GeneratorConfig) -> list[str]:
    """In the order of the generators that run them."""
    return [name.strip() for name in generator.engine.split(",")]


def engine_of(generator: GeneratorConfig, role: str) -> str:
    """The engine of `generator-3`, also when it is started again or joins a live run."""
    names = engine_names(generator)
    return names[int(role.rpartition("-")[2]) % len(names)]


def engine_labels(generator: GeneratorConfig) -> list[str]:
    """What metrics call the engines of a mixed fleet; empty when all generators run the same."""
    labels = sorted({engine_label(name) for name in engine_names(generator)})
    return labels if len(labels) > 1 else []


def engine_label(name: str) -> str:
    """Of an engine of the user's own, the name of its class."""
    return name.rpartition(":")[2]
