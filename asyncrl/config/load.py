"""The configuration as people write it: YAML files and `key=value` overrides.

`load` merges defaults ← YAML file ← overrides (OmegaConf structured configs), so an unknown key or a wrong type is an
error that names the key.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from asyncrl.config.keys import check_keys
from asyncrl.config.schema import Config
from asyncrl.errors import ConfigError


def load(path: str | Path | None, overrides: list[str] | None = None) -> Config:
    """Defaults ← the YAML file ← `key=value` overrides, as a checked tree of dataclasses.

    An override looks like `generator.tensor_parallel=2`. Without a file the defaults stand alone. A value that begins
    with `~/` lies in the home folder: shells do not say so behind a `=`.

    Raises:
        ConfigError: the file is no YAML mapping; a key is unknown, missing or of the wrong type.
    """
    tree = OmegaConf.structured(Config)
    if path is not None:
        tree = _merge(tree, _read_yaml(Path(path)), str(path))
    for entry in overrides or []:
        tree = _merge(tree, _read_override(entry), f"override {entry!r}")
    try:
        missing = sorted(OmegaConf.missing_keys(tree))
        if missing:
            raise ConfigError(f"no value for {', '.join(missing)}; set it in the config file or as {missing[0]}=VALUE")
        config = OmegaConf.to_object(tree)
    except InterpolationResolutionError as error:
        raise ConfigError(f"key {error.full_key!r}: {str(error).splitlines()[0]}") from error
    found = _from_home(config)
    assert isinstance(found, Config)
    return found


def to_yaml(config: Config) -> str:
    """The whole resolved configuration as YAML; `load` reads it back to an equal Config."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def _from_home(value: Any) -> Any:
    if isinstance(value, str):
        return str(Path(value).expanduser()) if value.startswith("~/") else value
    if isinstance(value, list):
        return [_from_home(each) for each in value]
    if isinstance(value, dict):
        return {key: _from_home(each) for key, each in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{each.name: _from_home(getattr(value, each.name)) for each in fields(value)})
    return value


def _read_yaml(path: Path) -> Any:
    if not path.is_file():
        raise ConfigError(f"config file {path} does not exist")
    try:
        loaded = OmegaConf.load(path)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {path} is not valid YAML: {error}") from error
    if not OmegaConf.is_dict(loaded):
        raise ConfigError(f"config file {path} must be a mapping of sections, not a list")
    return loaded


def _read_override(entry: str) -> Any:
    key, separator, _ = entry.partition("=")
    if not separator or not key:
        raise ConfigError(f"override {entry!r} is not of the form key=value")
    try:
        return OmegaConf.from_dotlist([entry])
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"override {entry!r} is not valid YAML: {str(error).splitlines()[0]}") from error


def _merge(tree: Any, other: Any, source: str) -> Any:
    check_keys(Config, OmegaConf.to_container(other), source=source)
    try:
        if OmegaConf.select(other, "replay.durability") is False:  # what YAML makes of a bare `off`
            OmegaConf.update(other, "replay.durability", "off")
        return OmegaConf.merge(tree, other)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{source}: key {error.full_key!r}: {str(error).splitlines()[0]}") from error
