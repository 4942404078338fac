"""Unknown keys, and values where a section belongs, named by their whole dotted key.

Works on any tree of dataclasses. OmegaConf refuses the same mistakes, but inside lists and for whole sections its
errors do not carry the full key.
"""

from __future__ import annotations

import difflib
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from asyncrl.errors import ConfigError


def known_keys(schema: type, prefix: str = "") -> list[str]:
    """Every dotted key of a tree of dataclasses, such as `learner.lr`; list items have no index."""
    keys: list[str] = []
    hints = get_type_hints(schema)
    for item in fields(schema):
        keys.append(prefix + item.name)
        section = hints[item.name] if is_dataclass(hints[item.name]) else _item_schema(hints[item.name])
        if section is not None:
            keys += known_keys(section, f"{prefix}{item.name}.")
    return keys


def check_keys(schema: type, values: Any, source: str) -> None:
    """Walk `values` beside the schema.

    Args:
        schema: the dataclass at the root.
        values: plain dicts, lists and leaves, as YAML gives them.
        source: where `values` came from, for messages.

    Raises:
        ConfigError: a key is unknown (with the nearest known one), or a section, list or value has another shape.
    """
    _check_section(schema, values, "", source, known_keys(schema))


def _check_section(schema: type, values: Any, prefix: str, source: str, known: list[str]) -> None:
    names = [item.name for item in fields(schema)]
    section = prefix.rstrip(".")
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: {section!r} is a section, not one value; its keys: {', '.join(names)}")
    hints = get_type_hints(schema)
    for name, value in values.items():
        key = f"{prefix}{name}"
        if name not in names:
            raise ConfigError(f"{source}: unknown key {key!r}; {_nearest(key, known, section, names)}")
        item_schema = _item_schema(hints[name])
        if is_dataclass(hints[name]):
            _check_section(hints[name], value, f"{key}.", source, known)
        elif item_schema is not None and not isinstance(value, list):
            raise ConfigError(f"{source}: {key!r} must be a list, such as {key}=[{{{_example(item_schema)}}}]")
        elif item_schema is not None:
            for position, item in enumerate(value):
                _check_section(item_schema, item, f"{key}[{position}].", source, known)
        elif get_origin(hints[name]) is dict:
            if not isinstance(value, dict):
                raise ConfigError(f"{source}: {key!r} takes names and their values, such as {key}.NAME=VALUE")
        elif isinstance(value, dict) or (isinstance(value, list) and get_origin(hints[name]) is not list):
            raise ConfigError(f"{source}: {key!r} takes one value, not {value}")


def _item_schema(hint: Any) -> type | None:
    """The dataclass of a `list[dataclass]`, else None."""
    return next((inner for inner in get_args(hint) if isinstance(inner, type) and is_dataclass(inner)), None)


def _example(schema: type) -> str:
    """Its first keys, as one writes them."""
    return ", ".join(f"{item.name}: …" for item in fields(schema)[:2])


def _nearest(key: str, known: list[str], section: str, names: list[str]) -> str:
    """A key of another section, one of the same section that is spelled alike, or one of any that nearly is."""
    leaf = key.rpartition(".")[2]
    leaves = {candidate.rpartition(".")[2]: candidate for candidate in known}
    if leaf in leaves:
        return f"did you mean {leaves[leaf]!r}?"
    here = difflib.get_close_matches(leaf, names, n=1, cutoff=0.6)
    if here:
        return f"did you mean {key.removesuffix(leaf) + here[0]!r}?"
    elsewhere = difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.8)
    return f"did you mean {leaves[elsewhere[0]]!r}?" if elsewhere else f"{section or 'config'} has: {', '.join(names)}"
