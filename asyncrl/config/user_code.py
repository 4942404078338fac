"""`module:attribute` or `path/to/file.py:attribute` of the configuration: what users bring of their own.

It is imported from the config alone.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import zlib
from pathlib import Path
from typing import Any

from asyncrl.errors import ConfigError


def import_attribute(key: str, name: str, attribute_kind: str, built_in: str) -> Any:
    """What `module:attribute` names, imported also from the working directory, or `path/to/file.py:attribute`.

    Args:
        key: of the configuration, for messages.
        attribute_kind: such as `function`.
        built_in: the names that could stand instead, for messages.

    Raises:
        ConfigError: not of that form, module that does not import, attribute that is missing or not callable.
    """
    module_name, separator, attribute = name.rpartition(":")
    if not (module_name and separator and attribute):
        raise ConfigError(
            f"{key}: unknown {attribute_kind} {name!r}; "
            f"use {built_in}, module:{attribute_kind} or file.py:{attribute_kind}"
        )
    if module_name.endswith(".py"):
        module = _import_file(key, name, Path(module_name).resolve())
    else:
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
        module = import_module(key, name, module_name, "it must be installed or lie in the working directory")
    if not hasattr(module, attribute):
        raise ConfigError(f"{key}: {name!r}: module {module_name!r} has no {attribute!r}")
    found = getattr(module, attribute)
    if not callable(found):
        raise ConfigError(f"{key}: {name!r} is a {type(found).__name__}, not a {attribute_kind}")
    return found


def _import_file(key: str, name: str, file: Path) -> object:
    """The module that the file is, imported once in a process; its name cannot meet that of another module."""
    if not file.is_file():
        raise ConfigError(f"{key}: {name!r}: there is no file {file}")
    module_name = f"asyncrl_user_{zlib.crc32(bytes(file)):08x}"
    if module_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(module_name, file)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[module_name] = module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as error:  # a user's module may raise anything while it is imported
            del sys.modules[module_name]
            raise ConfigError(f"{key}: {name!r}: cannot import {file} ({error!r})") from error
    return sys.modules[module_name]


def import_module(key: str, name: str, module_name: str, hint: str) -> object:
    """Raises ConfigError, with the hint, when the module does not import."""
    try:
        return importlib.import_module(module_name)
    except Exception as error:  # a user's module may raise anything while it is imported
        raise ConfigError(f"{key}: {name!r}: cannot import {module_name!r} ({error!r}); {hint}") from error
